"""Default tile sizes of the gradients."""

from __future__ import annotations

from typing import NamedTuple


class KeyTile(NamedTuple):
    """Of the gradients of keys: keys and rows to a tile, warps, and tiles of rows in shared memory."""

    keys: int
    rows: int
    warps: int
    stages: int


class QueryTile(NamedTuple):
    """Of the gradients of queries: rows and keys to a tile, and warps."""

    rows: int
    keys: int
    warps: int


#: By bytes of an element and width of a row, where a block has shared memory of 160 KB or more, and where it has 99 KB.
_KEYS = {
    (2, 64): (KeyTile(128, 64, 8, 2), KeyTile(128, 64, 8, 2)),
    (2, 128): (KeyTile(128, 32, 8, 2), KeyTile(128, 32, 8, 1)),
    (2, 256): (KeyTile(64, 32, 4, 1), KeyTile(64, 16, 4, 1)),
    (4, 64): (KeyTile(64, 32, 4, 1), KeyTile(64, 32, 4, 1)),
    (4, 128): (KeyTile(64, 16, 4, 1), KeyTile(64, 16, 4, 1)),
    (4, 256): (KeyTile(32, 16, 2, 1), KeyTile(32, 16, 2, 1)),
}
_QUERIES = {
    (2, 64): (QueryTile(128, 32, 4), QueryTile(128, 32, 4)),
    (2, 128): (QueryTile(128, 32, 4), QueryTile(128, 32, 8)),
    (2, 256): (QueryTile(64, 32, 4), QueryTile(64, 16, 4)),
    (4, 64): (QueryTile(64, 64, 4), QueryTile(64, 64, 4)),
    (4, 128): (QueryTile(64, 32, 4), QueryTile(64, 16, 4)),
    (4, 256): (QueryTile(32, 16, 2), QueryTile(32, 16, 2)),
}
#: Slopes of float16 take two pieces, for which two tiles of such rows to a warp leave no registers.
_HALF_QUERIES = {128: QueryTile(128, 32, 8)}


def grad_tiles(dtype: str, width: int, much: bool) -> dict[str, int]:
    """Return the fields of the config that say how gradients are tiled.

    Tiles are the largest of those tried whose sums stay in registers, as in `config.default_config`.

    Args:
        dtype: its name.
        width: of a row, the larger of head_dim and v_head_dim in 64, 128 or 256.
        much: whether a block has shared memory of 160 KB or more.
    """
    size = 4 if dtype == "float32" else 2
    keys, queries = _KEYS[size, width][not much], _QUERIES[size, width][not much]
    if dtype == "float16":
        queries = _HALF_QUERIES.get(width, queries)
    return {
        "grad_keys": keys.keys, "grad_rows": keys.rows, "grad_warps": keys.warps, "grad_stages": keys.stages,
        "grad_query_rows": queries.rows, "grad_query_keys": queries.keys, "grad_query_warps": queries.warps,
    }  # fmt: skip
