"""The compiled matrix products of the CPU kernels, by address: C[r, :] (+)= sum_k A[r, k] B[k, :]."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types

from sparsemoc.backends.numba.compiled import callback
from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW, _product

#: A is a strip of rows (queries, or gradients of out) of ROW elements; k runs along the head_dim.
_row = _product(ROW, 1)
#: A is a strip of logits' rows; k runs along the keys.
_key = _product(LOGIT_ROW, 1)
#: A is the transpose of logits' rows: its rows are keys, k runs along the queries.
_query = _product(1, LOGIT_ROW)

_SIGNATURE = types.void(*(types.int64,) * 9)


def _row32(rows, vectors, a, b, b_k, c, c_row, depth, accumulate):  # type: ignore[no-untyped-def]
    _row(np.float32(0), rows, vectors, a, b, b_k, c, c_row, depth, accumulate)


def _key32(rows, vectors, a, b, b_k, c, c_row, depth, accumulate):  # type: ignore[no-untyped-def]
    _key(np.float32(0), rows, vectors, a, b, b_k, c, c_row, depth, accumulate)


def _query32(rows, vectors, a, b, b_k, c, c_row, depth, accumulate):  # type: ignore[no-untyped-def]
    _query(np.float32(0), rows, vectors, a, b, b_k, c, c_row, depth, accumulate)


def _row64(rows, vectors, a, b, b_k, c, c_row, depth, accumulate):  # type: ignore[no-untyped-def]
    _row(np.float64(0), rows, vectors, a, b, b_k, c, c_row, depth, accumulate)


def _key64(rows, vectors, a, b, b_k, c, c_row, depth, accumulate):  # type: ignore[no-untyped-def]
    _key(np.float64(0), rows, vectors, a, b, b_k, c, c_row, depth, accumulate)


def _query64(rows, vectors, a, b, b_k, c, c_row, depth, accumulate):  # type: ignore[no-untyped-def]
    _query(np.float64(0), rows, vectors, a, b, b_k, c, c_row, depth, accumulate)


_COMPILED = {
    ("row", 4): _row32,
    ("key", 4): _key32,
    ("query", 4): _query32,
    ("row", 8): _row64,
    ("key", 8): _key64,
    ("query", 8): _query64,
}


@cache
def _compiled(name: str, itemsize: int) -> Any:
    return callback(_SIGNATURE, _COMPILED[name, itemsize])


def address(name: str, dtype: Any) -> int:
    """Return the address of the product "row", "key" or "query" for a float type, compiled when first asked for."""
    return int(_compiled(name, np.dtype(dtype).itemsize).address)
