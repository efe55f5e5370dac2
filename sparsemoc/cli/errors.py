"""What can go wrong before the library is even called: a video that cannot be read, an extra that is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from sparsemoc.spec.errors import SparsemocError, SpecError
from sparsemoc.spec.routing import RoutingSpec

#: How to get the extra that a command needs.
INSTALL = 'pip install "sparsemoc[demo]", or pip install ".[demo]" in a checkout'


class VideoError(SparsemocError, ValueError):
    """A video is missing, unreadable, or too short to make one latent frame."""


class OutputError(SparsemocError, OSError):
    """The folder for the results cannot be written."""


class MissingExtraError(SparsemocError, ImportError):
    """A package of an optional extra is not installed."""


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Import and return a module of the `demo` extra.

    Raises:
        MissingExtraError: it is not installed, or it is broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"demo: {package} must be installed to {purpose}, but importing it failed ({error}). Hint: {INSTALL}."
        ) from None


def check_heads(function: str, spec: RoutingSpec, heads: int) -> None:
    """Raise SpecError where the spec has a top_k per head, for another number of heads than --heads says."""
    if not isinstance(spec.top_k, int) and len(spec.top_k) != heads:
        wanted = len(spec.top_k)
        raise SpecError(
            f"{function}: --heads must be {wanted}, for the spec has one top_k per head, got {heads}. "
            f"Hint: --heads {wanted}."
        )
