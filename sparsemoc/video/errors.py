"""What can go wrong with video: a file that cannot be read, an extra that is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from sparsemoc.spec.errors import SparsemocError


class VideoError(SparsemocError, ValueError):
    """A video is missing, unreadable, or too short to make one latent frame."""


class MissingExtraError(SparsemocError, ImportError):
    """A package of an optional extra is not installed."""


def install_hint(extras: str) -> str:
    """Return how to get extras, such as "demo" or "demo,diffusers"."""
    return f'pip install "sparsemoc[{extras}]", or pip install ".[{extras}]" in a checkout'


#: How to get the extra that video and pictures need.
INSTALL = install_hint("demo")


def require(module: str, package: str, purpose: str, *, extras: str = "demo") -> ModuleType:
    """Import and return a module of optional extras.

    Raises:
        MissingExtraError: it is not installed, or it is broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"sparsemoc: {package} must be installed to {purpose}, but importing it failed ({error}). "
            f"Hint: {install_hint(extras)}."
        ) from None
