"""Context parallelism by Ulysses: each device trades its tokens of all heads for all tokens of its heads, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.distributed import _functional_collectives as collectives

from sparsemoc.adapters.diffusers.family import Family
from sparsemoc.spec.errors import ShapeError, UnsupportedError
from sparsemoc.spec.routing import RoutingSpec


@dataclass(frozen=True)
class Ulysses:
    """The devices that share the tokens of a model.

    Args:
        group: their process group.
        size: how many there are.
        rank: which of them this one is; it takes the heads from rank * heads / size on.
    """

    group: Any
    size: int
    rank: int

    def to_heads(self, x: Any) -> Any:
        """Return (batch, tokens / size, heads, head_dim) as (batch, tokens, heads / size, head_dim)."""
        batch, tokens, heads, head_dim = x.shape
        if heads % self.size:
            raise ShapeError(
                f"enable: the heads must divide evenly among the devices of ulysses_degree={self.size}, got {heads}."
            )
        parts = x.reshape(batch, tokens, self.size, heads // self.size, head_dim).permute(2, 1, 0, 3, 4)
        return self._trade(parts.flatten(0, 1)).permute(1, 0, 2, 3)

    def to_tokens(self, x: Any) -> Any:
        """Return (batch, tokens, heads / size, head_dim) as (batch, tokens / size, heads, head_dim)."""
        parts = self._trade(x.permute(1, 0, 2, 3)).unflatten(0, (self.size, -1))
        return parts.permute(2, 1, 0, 3, 4).flatten(2, 3)

    def own(self, spec: RoutingSpec, heads: int) -> RoutingSpec:
        """Return the spec of this device's heads, `heads` of all."""
        if isinstance(spec.top_k, int):
            return spec
        first = self.rank * heads
        return replace(spec, top_k=spec.top_k_of(heads * self.size)[first : first + heads])

    def _trade(self, x: Any) -> Any:
        """Send part r of the first axis to device r, and stack what comes, in the order of devices."""
        return collectives.all_to_all_single_autograd(x.contiguous(), None, None, self.group)


def ulysses_of(parallel: Any, family: Family, name: str) -> Ulysses | None:
    """Return how a model's tokens are shared, or None where they are not.

    Args:
        parallel: diffusers' ParallelConfig of the model, or None.
        family: of the model.
        name: for the message.

    Raises:
        UnsupportedError: a way of sharing that routes cannot follow.
    """
    config = getattr(parallel, "context_parallel_config", None)
    if config is None:
        return None
    if family.order != ("video",) or family.processor is not None:
        reason = "a model of text and video, or one with processors of its own"
    elif config.ring_degree > 1:
        reason = f"ring_degree={config.ring_degree}"
    elif config.ulysses_anything:
        reason = "ulysses_anything=True"
    else:
        mesh = config._ulysses_mesh
        return Ulysses(mesh.get_group(), config.ulysses_degree, mesh.get_local_rank())
    raise UnsupportedError(
        f"{name}: context parallelism must be Ulysses over video tokens in equal parts, got {reason}. "
        "Hint: ContextParallelConfig(ulysses_degree=...), or run on one device."
    )
