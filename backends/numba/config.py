"""The tunables of the CPU kernels and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.checks import whole
from sparsemoc.spec.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class NumbaConfig:
    """Tile sizes. None of them depends on the number of threads, batch or heads: results do not either.

    Args:
        query_block: fewest queries whose running state a unit of the forward keeps in cache.
        query_block_max: most, where chunks are many: a block grows until each chunk has `gathered` queries in it.
        gathered: queries of a block that choose a chunk, on average, for the block to stop growing.
        key_tile: most keys to a tile of logits, at most 512.
        grad_block: queries, and keys, to a unit of the backward.
        grad_rows: most queries to a tile of the backward.
        grad_keys: most keys to a tile of the backward, at most 512.
    """

    query_block: int = 8192
    query_block_max: int = 16384
    gathered: int = 64
    key_tile: int = 512
    grad_block: int = 2048
    grad_rows: int = 56
    grad_keys: int = 256

    def __post_init__(self) -> None:
        for name in ("query_block", "query_block_max", "gathered", "grad_block", "grad_rows"):
            whole(getattr(self, name), f"NumbaConfig: {name}", least=1)
        whole(self.key_tile, "NumbaConfig: key_tile", least=16, most=512)
        whole(self.grad_keys, "NumbaConfig: grad_keys", least=16, most=512)

    def forward_blocks(self, plan: Plan, q_tokens: int, chunks: int) -> NDArray[np.int64]:
        """Return the bounds of the forward's query blocks."""
        routes = max(plan.slots, 1)
        size = min(max(self.query_block, self.gathered * chunks // routes), self.query_block_max)
        return even_blocks(q_tokens, size)


def even_blocks(tokens: int, size: int) -> NDArray[np.int64]:
    """Return the bounds of ceil(tokens / size) nearly equal blocks."""
    count = -(-tokens // size)
    return np.arange(count + 1, dtype=np.int64) * tokens // count
