"""What can go wrong before the library is even called: a folder that cannot be written, a spec that does not fit."""

from __future__ import annotations

from sparsemoc.spec.errors import SparsemocError, SpecError
from sparsemoc.spec.routing import RoutingSpec


class OutputError(SparsemocError, OSError):
    """The folder for the results cannot be written."""


def check_heads(function: str, spec: RoutingSpec, heads: int) -> None:
    """Raise SpecError where the spec has a top_k per head, for another number of heads than --heads says."""
    if not isinstance(spec.top_k, int) and len(spec.top_k) != heads:
        wanted = len(spec.top_k)
        raise SpecError(
            f"{function}: --heads must be {wanted}, for the spec has one top_k per head, got {heads}. "
            f"Hint: --heads {wanted}."
        )
