"""Every kernel as it ships: by the functions through which the backend makes them, for its default configs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparsemoc.backends.cupy.candidates import FIND_CANDIDATES
from sparsemoc.backends.cupy.config import CupyConfig, default_config
from sparsemoc.backends.cupy.grad_kernels import join_kernel, key_grads_kernel, query_grads_kernel, rows_kernel
from sparsemoc.backends.cupy.machine import Kernel
from sparsemoc.backends.cupy.pair_kernels import PIECES, anchors_kernel, clear_kernel, merge_kernel, routed_kernel
from sparsemoc.backends.cupy.routing_tiles import (
    MOST_SLOTS,
    drop_kernel,
    index_kernel,
    most_slots,
    pool_kernel,
    route_kernel,
    split_kernel,
)
from sparsemoc.backends.cupy.tables import FIND_ENDS

#: Routes to a query: lists are as long as the next power of two.
EVERY_ROUTES = tuple(1 << power for power in range(MOST_SLOTS.bit_length()))
#: Keys of the longest chunk: the default config has tiles for some, and one for all that are longer.
_CHUNKS = (16, 32, 64, 128, 256, None)


def kernels(
    dtype: str,
    head_dim: int,
    capability: int,
    routes: Sequence[int] = EVERY_ROUTES,
    precisions: Sequence[str] = tuple(PIECES),
) -> list[Kernel]:
    """Return the kernels that default configs need, each once.

    Args:
        dtype: of the arrays.
        head_dim: of queries, keys and values.
        capability: of the GPU, 90 for sm_90.
        routes: to a query: those that shared memory has no room for are left out.
        precisions: of float32 products.
    """
    config = default_config(head_dim, dtype, capability)
    made = [*_routing(dtype, head_dim, capability, routes, config)]
    for precision in precisions if dtype == "float32" else ("ieee",):
        made += _pairs(dtype, head_dim, capability, precision)
    made += (make(dtype, head_dim) for make in (merge_kernel, clear_kernel))
    made.append(rows_kernel(dtype, head_dim, head_dim))
    made += (join_kernel(name, dtype) for name in ("join_segments", "join_query_grads"))
    return list(dict.fromkeys(made))


def _routing(dtype: str, head_dim: int, capability: int, routes: Sequence[int], config: CupyConfig) -> Iterator[Kernel]:
    """Yield the kernels that choose chunks, and sort what was chosen."""
    yield from (FIND_ENDS, FIND_CANDIDATES)
    yield from (pool_kernel(name, dtype, head_dim, config.pool_warps) for name in ("pool", "pool_units"))
    yield split_kernel(head_dim)
    # The means of `Block` units are float32 whatever the queries are.
    for queries in dict.fromkeys((dtype, "float32")):
        most = most_slots(queries, head_dim, capability)
        yield from (route_kernel(queries, head_dim, top_k, config, capability) for top_k in routes if top_k <= most)
    yield from map(drop_kernel, routes)
    names = ("count_entries", "scan_counts", "place_entries", "tile_starts", "split_starts")
    yield from map(index_kernel, names)


def _pairs(dtype: str, head_dim: int, capability: int, precision: str) -> Iterator[Kernel]:
    """Yield the kernels of attended pairs and of their gradients."""
    for chunk in _CHUNKS:
        config = default_config(head_dim, dtype, capability, chunk)
        about = (dtype, head_dim, head_dim, precision, config)
        yield anchors_kernel(*about)
        yield routed_kernel(*about, chunk is not None and chunk <= config.routed_keys)
        yield key_grads_kernel(*about)
        yield from (query_grads_kernel(name, *about) for name in ("anchor_query_grads", "routed_query_grads"))
