"""The kernels of routing as they are compiled: from the config, fitted to head_dim, dtype and number of routes."""

from __future__ import annotations

from sparsemoc.backends.cupy.config import CupyConfig, most_shared
from sparsemoc.backends.cupy.machine import Kernel, kernel
from sparsemoc.backends.cupy.shared import head_block, tile_bytes
from sparsemoc.spec.errors import UnsupportedError

#: The names of element types in the sources.
ELEMENTS = {"float16": "half_t", "bfloat16": "bfloat_t", "float32": "float"}
#: Most slots of `selected`.
MOST_SLOTS = 512
#: bfloat16 pieces that hold a number of each dtype, and those of a centroid.
_PIECES = {"bfloat16": 1, "float16": 2, "float32": 3}
_PLANES = 3
#: Routing units to a warp, and the fewest centroids to a tile.
_UNITS = 16
_LEAST_CHUNKS = 16
_SPLIT_THREADS, _DROP_WARPS, _INDEX_THREADS = 256, 4, 256


def pool_kernel(name: str, dtype: str, head_dim: int, warps: int) -> Kernel:
    """Return a kernel of pool.cu for rows of a dtype."""
    return kernel(
        "pool", name, threads=warps * 32, shared=warps * 32 * 8 * 4,
        ELEMENT=ELEMENTS[dtype], HEAD_BLOCK=head_block(head_dim),
    )  # fmt: skip


def split_kernel(head_dim: int) -> Kernel:
    """Return the kernel of split.cu."""
    return kernel("split", "split_centroids", threads=_SPLIT_THREADS, HEAD_BLOCK=head_block(head_dim))


def route_kernel(dtype: str, head_dim: int, routes: int, config: CupyConfig, capability: int) -> Kernel:
    """Return the kernel of route.cu: tiles as wished for, or smaller ones where shared memory does not hold them.

    Args:
        dtype: of the units' queries.
        head_dim: their width.
        routes: most top_k of any head.
        config: tile sizes wished for.
        capability: of the GPU.

    Raises:
        UnsupportedError: the least tiles do not fit either; see `most_slots`.
    """
    block, slots, room = head_block(head_dim), _list_slots(routes), most_shared(capability)
    warps, chunks = config.route_warps, config.route_chunks
    while _route_bytes(dtype, block, warps, chunks, slots) > room:
        if chunks > _LEAST_CHUNKS:
            chunks //= 2
        elif warps > 1:
            warps //= 2
        else:
            most = most_slots(dtype, head_dim, capability)
            raise UnsupportedError(
                f"route: `top_k` must be at most {most} for {dtype} queries of head_dim {head_dim} on sm_{capability}, "
                f"got {routes}. Hint: lists of routes are kept in shared memory, of which this GPU has {room} bytes."
            )
    return kernel(
        "route", "route", threads=warps * 32, shared=_route_bytes(dtype, block, warps, chunks, slots),
        ELEMENT=ELEMENTS[dtype], QUERY_PIECES=_PIECES[dtype], HEAD_BLOCK=block, CHUNKS=chunks, LIST_SLOTS=slots,
    )  # fmt: skip


def route_tile(route: Kernel) -> tuple[int, int]:
    """Return the routing units to a block of a kernel of route.cu, and the centroids to a tile."""
    return route.threads // 32 * _UNITS, int(dict(route.constants)["CHUNKS"])


def most_slots(dtype: str, head_dim: int, capability: int) -> int:
    """Return the most slots of `selected` for units' queries of a dtype and head_dim: what the least tiles leave."""
    room, slots = most_shared(capability), MOST_SLOTS
    while _route_bytes(dtype, head_block(head_dim), 1, _LEAST_CHUNKS, slots) > room:
        slots //= 2
    return slots


def _list_slots(routes: int) -> int:
    """Return the slots of a list: a power of two, so that few kernels are compiled."""
    return 1 << max(routes - 1, 0).bit_length()


def _route_bytes(dtype: str, block: int, warps: int, chunks: int, slots: int) -> int:
    """Return the shared memory of route.cu: queries, two tiles of centroids, scores, lists."""
    units = warps * _UNITS
    operands = _PIECES[dtype] * tile_bytes(units, block, 2) + 2 * _PLANES * tile_bytes(chunks, block, 2)
    return operands + units * ((chunks + 8) * 4 + slots * 8)


def drop_kernel(slots: int) -> Kernel:
    """Return the kernel of dropout.cu for a width of `selected`."""
    width = _list_slots(slots)
    return kernel("dropout", "drop_routes", threads=_DROP_WARPS * 32, shared=_DROP_WARPS * width * 8, LIST_SLOTS=width)


def index_kernel(name: str) -> Kernel:
    """Return a kernel of index.cu."""
    return kernel("index", name, threads=_INDEX_THREADS, shared=_INDEX_THREADS // 32 * 4)
