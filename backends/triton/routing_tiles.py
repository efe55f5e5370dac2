"""Compile-time arguments of the routing kernels: from the config, fitted to head_dim, dtype and number of routes."""

from __future__ import annotations

from typing import Any

import triton

from sparsemoc.backends.triton.config import TritonConfig

#: Most elements of the running lists of a tile: they are kept in registers. Route dropout holds more besides.
_MOST_LISTED = 8192
_MOST_DROPPED = 2048
_LONG_LIST = 128


def padded_dim(head_dim: int) -> int:
    """Return the width of a tile of rows: a power of two, and what a matrix product takes at least."""
    return max(16, int(triton.next_power_of_2(head_dim)))


def padded_slots(slots: int) -> int:
    """Return the length of a unit's running list: a power of two that a sort takes."""
    return max(2, int(triton.next_power_of_2(slots)))


def query_pieces(dtype: str, blocks: bool) -> int:
    """Return how many bfloat16 pieces hold a unit's query exactly: a mean is float32, whatever its rows are."""
    if blocks or dtype == "float32":
        return 3
    return 1 if dtype == "bfloat16" else 2


def pool_constants(config: TritonConfig, head_dim: int) -> dict[str, Any]:
    """Return the compile-time arguments of `pool_kernel`."""
    return {"HEAD_DIM": head_dim, "BLOCK_D": padded_dim(head_dim), "KEYS": config.pool_keys}


def split_constants(head_dim: int, chunks: int) -> dict[str, Any]:
    """Return the compile-time arguments of `split_kernel` for tiles of `chunks` centroids."""
    return {"HEAD_DIM": head_dim, "BLOCK_D": padded_dim(head_dim), "ROWS": chunks}


def route_constants(
    config: TritonConfig, head_dim: int, dtype: str, slots: int, group: int, blocks: bool, window: bool
) -> dict[str, Any]:
    """Return the compile-time arguments of `route_kernel`.

    Args:
        config: tile sizes wished for.
        head_dim, dtype: of the queries.
        slots: width of `selected`.
        group: query heads to a key head.
        blocks: whether units are blocks of rows.
        window: whether there are token windows.
    """
    dim, pieces, width = padded_dim(head_dim), query_pieces(dtype, blocks), padded_slots(slots)
    # Each halving keeps the registers of a thread from overflowing: pieces of the query, tiles of window bounds.
    halvings = (pieces > 1) + window + (dim > 128)
    units = config.route_units >> halvings
    if units * width > _MOST_LISTED:
        units = 16
    return {
        "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_D": dim, "UNITS": max(units, 16), "CHUNKS": config.route_chunks,
        "SLOTS": width, "PIECES": pieces, "BLOCKS": blocks, "WINDOW": window, "STAGES": config.route_stages,
    }  # fmt: skip


def route_warps(config: TritonConfig, slots: int) -> int:
    """Return the warps of `route_kernel`: twice as many where the running lists are long."""
    return config.route_warps * (2 if padded_slots(slots) > _LONG_LIST else 1)


def drop_constants(
    config: TritonConfig, slots: int, blocks: bool, window: bool, starts: bool = False
) -> dict[str, Any]:
    """Return the compile-time arguments of `drop_kernel`; `slots`, `blocks`, `window` as in `route_constants`.

    `starts` says whether the numbers of the first batch row and head lie in memory, behind the seed.
    """
    width = padded_slots(slots)
    units = max(1, min(config.drop_units, _MOST_DROPPED // width))
    return {
        "UNITS": units, "CHUNKS": config.drop_chunks, "SLOTS": width, "BLOCKS": blocks, "WINDOW": window,
        "STARTS": starts,
    }  # fmt: skip


def index_constants(config: TritonConfig, slots: int) -> dict[str, Any]:
    """Return the compile-time arguments of `count_kernel` and `place_kernel`."""
    width = padded_slots(slots)
    return {"STEP": max(1, config.index_entries // width), "SLOTS": width}
