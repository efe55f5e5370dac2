"""Gradients of queries in a fixed order of sums, query-stationary: for the deterministic mode.

As in the forward, tiles of rows meet their anchors and gathered rows meet the chunk they chose; each writes float32
partial sums to a place of its own, and `join_query_grads` adds those of a row in order. P and dS are computed once
more than in `kernels/grads.py`, where dq is added to by atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.anchors import BANDED, ENTRY, FULL, ITEM
from sparsemoc.backends.triton.kernels.coverage import FAR, overlap, reaches, uncovered
from sparsemoc.backends.triton.kernels.routed import find_chunk
from sparsemoc.backends.triton.kernels.slopes import finite, slope_product, slopes
from sparsemoc.backends.triton.kernels.softmax import load_rows
from sparsemoc.backends.triton.kernels.tile import dot


@triton.jit
def _row_state(
    q, d_out, shift, delta, rows, own, stride_ql, stride_qd, stride_ol, stride_od,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Load q, d_out, shift and delta of rows; return them and which rows see a key."""
    at = rows.to(tl.int64)
    row_shift = tl.load(shift + at, mask=own, other=float("-inf"))
    sees = row_shift != float("-inf")
    row_delta = tl.load(delta + at, mask=own, other=0.0)
    queries = load_rows(q, at, stride_ql, stride_qd, sees, HEAD_DIM, BLOCK_D, True)
    d_outs = load_rows(d_out, at, stride_ol, stride_od, sees, V_HEAD_DIM, BLOCK_DV, True)
    return queries, d_outs, row_shift, row_delta, sees


@triton.jit
def _take_in(
    acc, queries, d_outs, row_shift, row_delta, k, v, start, inside, seen, scale, lift,
    stride_kl, stride_kd, stride_vl, stride_vd,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add dS k of the keys start ... start + BLOCK_N - 1; those not `inside` are not loaded unless WHOLE.

    MASKED says whether rows and keys that are loaded make pairs that do not count.
    """
    offsets = tl.arange(0, BLOCK_N)
    k += start * (tl.zeros((), tl.int64) + stride_kl)
    v += start * (tl.zeros((), tl.int64) + stride_vl)
    keys = load_rows(k, offsets, stride_kl, stride_kd, inside, HEAD_DIM, BLOCK_D, not WHOLE)
    values = load_rows(v, offsets, stride_vl, stride_vd, inside, V_HEAD_DIM, BLOCK_DV, not WHOLE)
    if MASKED:
        keys = finite(keys)
    logits = dot(queries, tl.trans(keys), PRECISION) * scale
    d_weights = dot(d_outs, tl.trans(values), PRECISION)
    _, slope = slopes(logits, d_weights, row_shift[:, None], row_delta[:, None], seen, lift)
    return acc + slope_product(slope, keys, PRECISION)


@triton.jit
def anchor_query_grads(
    q, k, v, d_out, shift, delta, items, entries, ends, dq_parts,
    stride_qb, stride_ql, stride_qh, stride_qd, stride_kb, stride_kl, stride_kh, stride_kd,
    stride_vb, stride_vl, stride_vh, stride_vd, stride_ob, stride_ol, stride_oh, stride_od, stride_ends,
    rows_all, places, q_start, reach, ahead, scale, lift,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dS k of the rows of one item against its ranges of keys, each row to its own place.

    Grid (items, heads, batch). See `anchors.attend_anchors` for items, entries and ends, `grads.grads` for the rest.

    Args:
        dq_parts: float32 (batch, heads, places, head_dim).
    """
    head, batch = tl.program_id(1), tl.program_id(2)
    lane = (batch * tl.num_programs(1) + head).to(tl.int64)
    items += tl.program_id(0) * ITEM
    row = tl.load(items)
    rows = row + tl.arange(0, BLOCK_M)
    own = rows < row + tl.load(items + 1)
    q += batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
    d_out += batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
    k += batch.to(tl.int64) * stride_kb + (head // GROUP).to(tl.int64) * stride_kh
    v += batch.to(tl.int64) * stride_vb + (head // GROUP).to(tl.int64) * stride_vh
    queries, d_outs, row_shift, row_delta, sees = _row_state(
        q, d_out, shift + lane * rows_all, delta + lane * rows_all, rows, own,
        stride_ql, stride_qd, stride_ol, stride_od, HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV,
    )  # fmt: skip
    positions = rows + q_start
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for number in range(tl.load(items + 2), tl.load(items + 3)):
        entry = entries + number * ENTRY
        lo, hi = tl.load(entry), tl.load(entry + 1)
        flags = tl.load(entry + 5)
        if PADDED:
            hi = tl.maximum(lo, tl.minimum(hi, tl.load(ends + batch * stride_ends + tl.load(entry + 4))))
        end = tl.where((flags & FULL) != 0, lo + (hi - lo) // BLOCK_N * BLOCK_N, lo)
        for start in range(lo, end, BLOCK_N):
            acc = _take_in(
                acc, queries, d_outs, row_shift, row_delta, k, v, start, True, sees[:, None], scale, lift,
                stride_kl, stride_kd, stride_vl, stride_vd,
                HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_N, True, False, PRECISION,
            )  # fmt: skip
        q_lo, q_hi = tl.load(entry + 2), tl.load(entry + 3)
        near = tl.where((flags & BANDED) != 0, reach, FAR)
        for start in range(end, hi, BLOCK_N):
            place = start + tl.arange(0, BLOCK_N)
            inside = place < hi
            seen = (sees & (rows >= q_lo) & (rows < q_hi))[:, None] & inside[None, :]
            distance = place[None, :] - positions[:, None]
            seen = seen & (distance <= ahead) & (tl.abs(distance) <= near)
            acc = _take_in(
                acc, queries, d_outs, row_shift, row_delta, k, v, start, inside, seen, scale, lift,
                stride_kl, stride_kd, stride_vl, stride_vd,
                HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_N, False, True, PRECISION,
            )  # fmt: skip
    target = lane * places + tl.load(items + 4) + rows
    _store_parts(dq_parts, target, own, tl.where(sees[:, None], acc, 0.0), HEAD_DIM, BLOCK_D)


@triton.jit
def routed_query_grads(
    q, k, v, d_out, shift, delta, entries, ptr, tile_ptr, chunk_lo, stops,
    run_of_row, anchor_ptr, anchor_lo, anchor_hi, dq_parts,
    stride_qb, stride_ql, stride_qh, stride_qd, stride_kb, stride_kl, stride_kh, stride_kd,
    stride_vb, stride_vl, stride_vh, stride_vd, stride_ob, stride_ol, stride_oh, stride_od, stride_stops,
    rows_all, chunks, places, slots, q_start, reach, most_ranges, scale, lift,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dS k of a tile of rows against the chunk that they chose, each row to place row * slots + slot.

    Grid (bound on tiles, heads, batch). See `routed.attend_routed` for the lists, and `grads.grads` for the rest.

    Args:
        dq_parts: float32 (batch, heads, places, head_dim).
    """
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lane = (batch * tl.num_programs(1) + head).to(tl.int64)
    tile_ptr += lane * (chunks + 1)
    if tile < tl.load(tile_ptr + chunks):
        chunk = find_chunk(tile_ptr, tile, chunks)
        ptr += lane * (chunks + 1) + chunk
        place = tl.load(ptr) + (tile - tl.load(tile_ptr + chunk)) * BLOCK_M + tl.arange(0, BLOCK_M)
        own = place < tl.load(ptr + 1)
        entry = tl.load(entries + lane * places + place, mask=own, other=0)
        rows = entry // slots
        q += batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
        d_out += batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
        k += batch.to(tl.int64) * stride_kb + (head // GROUP).to(tl.int64) * stride_kh
        v += batch.to(tl.int64) * stride_vb + (head // GROUP).to(tl.int64) * stride_vh
        queries, d_outs, row_shift, row_delta, sees = _row_state(
            q, d_out, shift + lane * rows_all, delta + lane * rows_all, rows, own,
            stride_ql, stride_qd, stride_ol, stride_od, HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV,
        )  # fmt: skip
        lo = tl.load(chunk_lo + chunk)
        hi = tl.load(stops + batch * stride_stops + chunk)
        end = lo + (hi - lo) // BLOCK_N * BLOCK_N
        positions = rows + q_start
        if SPLIT:
            first, last = overlap(rows, own, lo, hi, run_of_row, anchor_ptr, anchor_lo, anchor_hi, most_ranges)
            most = tl.max(last - first, 0)
            end = tl.where((most > 0) | (reaches(positions, own, reach, lo, hi) > 0), lo, end)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for start in range(lo, end, BLOCK_N):
            acc = _take_in(
                acc, queries, d_outs, row_shift, row_delta, k, v, start, True, sees[:, None], scale, lift,
                stride_kl, stride_kd, stride_vl, stride_vd,
                HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_N, True, False, PRECISION,
            )  # fmt: skip
        for start in range(end, hi, BLOCK_N):
            keys = start + tl.arange(0, BLOCK_N)
            inside = keys < hi
            seen = sees[:, None] & inside[None, :]
            if SPLIT:
                seen = seen & uncovered(keys, positions, reach, first, last, most, anchor_lo, anchor_hi)
            acc = _take_in(
                acc, queries, d_outs, row_shift, row_delta, k, v, start, inside, seen, scale, lift,
                stride_kl, stride_kd, stride_vl, stride_vd,
                HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_N, False, SPLIT, PRECISION,
            )  # fmt: skip
        _store_parts(dq_parts, lane * places + entry, own, tl.where(sees[:, None], acc, 0.0), HEAD_DIM, BLOCK_D)


@triton.jit
def _store_parts(target, places, own, sums, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    kept = own[:, None] & (columns < HEAD_DIM)[None, :]
    tl.store(target + places[:, None] * HEAD_DIM + columns[None, :], sums, mask=kept)


@triton.jit
def join_query_grads(
    tiles, parts, anchor_parts, routed_parts, selected, dq,
    stride_sb, stride_sh, stride_sl, stride_ss, stride_b, stride_l, stride_h, stride_d,
    rows_all, anchor_places, slots, factor,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add the parts of each row in order, the anchors' first, then the routes by slot, and write dq.

    Grid (tiles, heads, batch).

    Args:
        tiles, parts: see `query_tiles.QueryTiles`; a tile has at most BLOCK_M rows.
        anchor_parts: float32 (batch, heads, anchor_places, head_dim).
        routed_parts: float32 (batch, heads, rows, slots, head_dim).
        selected: int32 (batch, heads, rows, slots), any strides; only slots >= 0 are read of the routes.
        dq: (batch, rows, heads, head_dim), any strides.
        factor: on the sums.
    """
    head, batch = tl.program_id(1), tl.program_id(2)
    lane = (batch * tl.num_programs(1) + head).to(tl.int64)
    tiles += tl.program_id(0) * 4
    rows = tl.load(tiles) + tl.arange(0, BLOCK_M)
    own = rows < tl.load(tiles) + tl.load(tiles + 1)
    at = rows.to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    wide = (columns < HEAD_DIM)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for part in range(tl.load(tiles + 2), tl.load(tiles + 3)):
        place = lane * anchor_places + tl.load(parts + part) + at
        shown = own[:, None] & wide
        acc += tl.load(anchor_parts + place[:, None] * HEAD_DIM + columns[None, :], mask=shown, other=0.0)
    selected += batch.to(tl.int64) * stride_sb + head.to(tl.int64) * stride_sh
    for slot in range(slots):
        taken = tl.load(selected + at * stride_sl + slot * stride_ss, mask=own, other=-1) >= 0
        place = (lane * rows_all + at) * slots + slot
        shown = taken[:, None] & wide
        acc += tl.load(routed_parts + place[:, None] * HEAD_DIM + columns[None, :], mask=shown, other=0.0)
    dq += batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    target = dq + at[:, None] * stride_l + columns[None, :] * stride_d
    tl.store(target, (acc * factor).to(dq.dtype.element_ty), mask=own[:, None] & wide)
