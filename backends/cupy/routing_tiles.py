"""The kernels of routing as they are compiled: from the config, fitted to head_dim, dtype and number of routes."""

from __future__ import annotations

from typing import Protocol

from sparsemoc.backends.cupy.machine import Kernel, kernel

#: The names of element types in the sources.
ELEMENTS = {"float16": "half_t", "bfloat16": "bfloat_t", "float32": "float"}
#: Widths of tiles that rows are padded to.
HEAD_BLOCKS = (64, 128, 256)


class RoutingConfig(Protocol):
    """The tunables of routing and of the index.

    Attributes:
        pool_warps: warps that add up the keys of a chunk, and the queries of a unit.
        route_warps: warps of 16 routing units each that share a tile of centroids.
        route_chunks: centroids to a tile, 16 or 32.
        index_rows: least rows to a tile of the chunk-major index.
    """

    @property
    def pool_warps(self) -> int: ...  # noqa: D102
    @property
    def route_warps(self) -> int: ...  # noqa: D102
    @property
    def route_chunks(self) -> int: ...  # noqa: D102
    @property
    def index_rows(self) -> int: ...  # noqa: D102


def head_block(head_dim: int) -> int:
    """Return the width of a tile of rows: the least that holds head_dim."""
    return next(block for block in HEAD_BLOCKS if head_dim <= block)


def pool_kernel(name: str, dtype: str, head_dim: int, warps: int) -> Kernel:
    """Return a kernel of pool.cu for rows of a dtype."""
    return kernel(
        "pool", name, threads=warps * 32, shared=warps * 32 * 8 * 4,
        ELEMENT=ELEMENTS[dtype], HEAD_BLOCK=head_block(head_dim),
    )  # fmt: skip
