"""Anchored pairs, query-major: tiles of consecutive rows against contiguous ranges of keys."""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.coverage import FAR
from sparsemoc.backends.triton.kernels.routed import attend_chunk
from sparsemoc.backends.triton.kernels.softmax import (
    EVERY,
    PAIRS,
    add_non_finite,
    empty_state,
    finish,
    holds_non_finite,
    load_rows,
    take_in,
)

#: Numbers to an item and to an entry of the tables that `query_tiles.py` makes.
ITEM = tl.constexpr(6)
ENTRY = tl.constexpr(6)
#: Flags of an entry: every row of the tile sees every key; only keys within reach of the token window count.
FULL = tl.constexpr(1)
BANDED = tl.constexpr(2)


@triton.jit
def _seen(rows, positions, keys, entry, reach, BAND: tl.constexpr, CAUSAL: tl.constexpr):
    """Return (M, N), which of the `keys` (N,), positions in the range of an entry, the rows see."""
    seen = ((rows >= tl.load(entry + 2)) & (rows < tl.load(entry + 3)))[:, None] & (keys >= 0)[None, :]
    if BAND:
        width = tl.where((tl.load(entry + 5) & BANDED) != 0, reach, FAR)
        seen = seen & (tl.abs(positions[:, None] - keys[None, :]) <= width)
    if CAUSAL:
        seen = seen & (keys[None, :] <= positions[:, None])
    return seen


@triton.jit
def _attend_entry(
    acc, total, top, queries, k, v, rows, entry, ends, scale, q_start, reach,
    stride_kl, stride_kd, stride_vl, stride_vd,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr, PADDED: tl.constexpr, BAND: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take one range of keys into the running softmax: whole tiles that all rows see, then masked ones."""
    offsets = tl.arange(0, BLOCK_N)
    wide_k = tl.zeros((), tl.int64) + stride_kl
    wide_v = tl.zeros((), tl.int64) + stride_vl
    lo, hi = tl.load(entry), tl.load(entry + 1)
    flags = tl.load(entry + 5)
    if PADDED:
        hi = tl.maximum(lo, tl.minimum(hi, tl.load(ends + tl.load(entry + 4))))
    end = tl.where((flags & FULL) != 0, lo + (hi - lo) // BLOCK_N * BLOCK_N, lo)
    for start in range(lo, end, BLOCK_N):
        keys = load_rows(k + start * wide_k, offsets, stride_kl, stride_kd, True, HEAD_DIM, BLOCK_D, False)
        values = load_rows(v + start * wide_v, offsets, stride_vl, stride_vd, True, V_HEAD_DIM, BLOCK_DV, False)
        acc, total, top = take_in(acc, total, top, queries, keys, values, True, scale, EVERY, PRECISION)
    positions = rows + q_start
    spoiled = 0
    for start in tl.range(end, hi, BLOCK_N, num_stages=1):
        inside = start + offsets < hi
        keys = load_rows(k + start * wide_k, offsets, stride_kl, stride_kd, inside, HEAD_DIM, BLOCK_D, True)
        values = load_rows(v + start * wide_v, offsets, stride_vl, stride_vd, inside, V_HEAD_DIM, BLOCK_DV, True)
        seen = _seen(rows, positions, start + offsets, entry, reach, BAND, CAUSAL) & inside[None, :]
        acc, total, top = take_in(acc, total, top, queries, keys, values, seen, scale, PAIRS, PRECISION)
        spoiled = tl.maximum(spoiled, holds_non_finite(values))
    if spoiled > 0:
        for place in range(end, hi):
            one = place + tl.arange(0, 1)
            row = load_rows(v, one * wide_v, 1, stride_vd, True, V_HEAD_DIM, BLOCK_DV, False)
            acc = add_non_finite(acc, row, _seen(rows, positions, one, entry, reach, BAND, CAUSAL))
    return acc, total, top


@triton.jit
def _valid_rows(rows, valid, batch, stops, stride_stops, run_of_row, run_chunk):
    """Return which rows are no padding: the valid tokens of a chunk end at its stop."""
    chunk = tl.load(run_chunk + tl.load(run_of_row + rows, mask=valid, other=0), mask=valid, other=0)
    return tl.load(stops + batch * stride_stops + chunk, mask=valid, other=0)


@triton.jit(
    do_not_specialize=(
        "stride_sb", "stride_sh", "stride_sl", "stride_stops", "stride_ends", "heads", "places", "slots", "q_start",
        "reach", "most_ranges",
    )
)  # fmt: skip
def attend_anchors(
    q, k, v, items, entries, stops, ends, chunk_lo, selected, run_of_row, run_chunk, run_base, anchor_ptr, anchor_lo,
    anchor_hi, out, lse,
    stride_qb, stride_ql, stride_qh, stride_qd, stride_kb, stride_kl, stride_kh, stride_kd,
    stride_vb, stride_vl, stride_vh, stride_vd, stride_sb, stride_sh, stride_sl, stride_stops, stride_ends,
    heads, places, slots, q_start, reach, most_ranges, scale,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr, BAND: tl.constexpr,
    CAUSAL: tl.constexpr, UNION: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend the rows of one item to its ranges of keys, each row to its own place.

    Grid (items, heads, batch). Where UNION, the rows of a tile share one selection, and the item that says so goes on
    over the chosen chunks: no index, and no partial outputs of routes, are needed for them.

    Args:
        q, k, v: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        items, entries: see `query_tiles.QueryTiles`.
        stops, ends: (batch or 1, chunks) and (batch or 1, segments), see `lengths.Ends`; `ends` is read where PADDED.
        chunk_lo, run_of_row, run_chunk, run_base, anchor_ptr, anchor_lo, anchor_hi: see `tables`.
        selected: int32 (batch, heads, rows, slots), the last axis dense; read where UNION.
        out: (batch, heads, places, v_head_dim), normalised partial outputs.
        lse: float32 (batch, heads, places), base 2; -inf where a row sees no key of the item, or is padding.
    """
    head, batch = tl.program_id(1), tl.program_id(2)
    items += tl.program_id(0) * ITEM
    row = tl.load(items)
    rows = row + tl.arange(0, BLOCK_M)
    own = rows < row + tl.load(items + 1)
    valid = own
    if PADDED:
        valid = own & (rows + q_start < _valid_rows(rows, own, batch, stops, stride_stops, run_of_row, run_chunk))
    q += batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
    k += batch.to(tl.int64) * stride_kb + (head // GROUP).to(tl.int64) * stride_kh
    v += batch.to(tl.int64) * stride_vb + (head // GROUP).to(tl.int64) * stride_vh
    queries = load_rows(q, rows.to(tl.int64), stride_ql, stride_qd, valid, HEAD_DIM, BLOCK_D, True)
    acc, total, top = empty_state(BLOCK_M, BLOCK_DV)
    for number in range(tl.load(items + 2), tl.load(items + 3)):
        acc, total, top = _attend_entry(
            acc, total, top, queries, k, v, rows, entries + number * ENTRY, ends + batch * stride_ends, scale,
            q_start, reach, stride_kl, stride_kd, stride_vl, stride_vd,
            HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_N, PADDED, BAND, CAUSAL, PRECISION,
        )  # fmt: skip
    if UNION:
        selected += batch.to(tl.int64) * stride_sb + head.to(tl.int64) * stride_sh + row.to(tl.int64) * stride_sl
        base = tl.load(run_base + tl.load(run_of_row + row))
        for slot in range(tl.load(items + 5) * slots):
            choice = tl.load(selected + slot)
            chunk = base + tl.maximum(choice, 0)
            lo = tl.load(chunk_lo + chunk)
            hi = tl.where(choice < 0, lo, tl.load(stops + batch * stride_stops + chunk))
            acc, total, top = attend_chunk(
                acc, total, top, queries, k, v, rows, valid, lo, hi, scale, q_start, reach, most_ranges,
                run_of_row, anchor_ptr, anchor_lo, anchor_hi, stride_kl, stride_kd, stride_vl, stride_vd,
                HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_N, SPLIT, PRECISION,
            )  # fmt: skip
    partial, logs = finish(acc, total, top)
    columns = tl.arange(0, BLOCK_DV)
    target = (batch * heads + head).to(tl.int64) * places + tl.load(items + 4) + rows
    kept = own[:, None] & (columns < V_HEAD_DIM)[None, :]
    tl.store(out + target[:, None] * V_HEAD_DIM + columns[None, :], partial.to(out.dtype.element_ty), mask=kept)
    tl.store(lse + target, tl.where(valid, logs, float("-inf")), mask=own)
