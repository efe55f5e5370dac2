"""Where the registry enters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemoc.backends.cupy.requirements import missing

if TYPE_CHECKING:
    from sparsemoc.backends.cupy.backend import CupyBackend


def _backend() -> CupyBackend:
    if reason := missing():
        raise ImportError(reason)
    from sparsemoc.backends.cupy.backend import CupyBackend

    return CupyBackend()


BACKEND = _backend()
