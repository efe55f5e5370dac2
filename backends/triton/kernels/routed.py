"""Routed pairs, chunk-major: gathered query rows against the keys of the chunk that they chose."""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.coverage import overlap, reaches, uncovered
from sparsemoc.backends.triton.kernels.softmax import (
    EVERY,
    KEYS,
    PAIRS,
    add_non_finite,
    empty_state,
    finish,
    holds_non_finite,
    load_rows,
    take_in,
)


@triton.jit
def find_chunk(tile_ptr, tile, chunks):
    """Return the chunk whose tiles hold `tile`: the largest c with tile_ptr[c] <= tile, by bisection."""
    lo = tl.zeros((), tl.int32)
    hi = lo + chunks
    while hi - lo > 1:
        middle = (lo + hi) // 2
        left = tl.load(tile_ptr + middle) <= tile
        lo = tl.where(left, middle, lo)
        hi = tl.where(left, hi, middle)
    return lo


@triton.jit
def attend_chunk(
    acc, total, top, queries, k, v, rows, valid, lo, hi, scale, q_start, reach, most_ranges,
    run_of_row, anchor_ptr, anchor_lo, anchor_hi, stride_kl, stride_kd, stride_vl, stride_vd,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take the keys lo ... hi - 1 of a chosen chunk into the running softmax of `rows`.

    SPLIT says whether anchors may hold a part of a chosen chunk. Where they do hold one of this chunk, for any of the
    rows, every tile of it is masked; everywhere else only the last one is, for its end.
    """
    offsets = tl.arange(0, BLOCK_N)
    wide_k = tl.zeros((), tl.int64) + stride_kl
    wide_v = tl.zeros((), tl.int64) + stride_vl
    end = lo + (hi - lo) // BLOCK_N * BLOCK_N
    if SPLIT:
        positions = rows + q_start
        first, last = overlap(rows, valid, lo, hi, run_of_row, anchor_ptr, anchor_lo, anchor_hi, most_ranges)
        most = tl.max(last - first, 0)
        end = tl.where((most > 0) | (reaches(positions, valid, reach, lo, hi) > 0), lo, end)
    for start in range(lo, end, BLOCK_N):
        keys = load_rows(k + start * wide_k, offsets, stride_kl, stride_kd, True, HEAD_DIM, BLOCK_D, False)
        values = load_rows(v + start * wide_v, offsets, stride_vl, stride_vd, True, V_HEAD_DIM, BLOCK_DV, False)
        acc, total, top = take_in(acc, total, top, queries, keys, values, True, scale, EVERY, PRECISION)
    spoiled = 0
    for start in tl.range(end, hi, BLOCK_N, num_stages=1):
        inside = start + offsets < hi
        keys = load_rows(k + start * wide_k, offsets, stride_kl, stride_kd, inside, HEAD_DIM, BLOCK_D, True)
        values = load_rows(v + start * wide_v, offsets, stride_vl, stride_vd, inside, V_HEAD_DIM, BLOCK_DV, True)
        if SPLIT:
            free = uncovered(start + offsets, positions, reach, first, last, most, anchor_lo, anchor_hi)
            seen = free & inside[None, :]
            acc, total, top = take_in(acc, total, top, queries, keys, values, seen, scale, PAIRS, PRECISION)
            spoiled = tl.maximum(spoiled, holds_non_finite(values))
        else:
            seen = inside[None, :]
            acc, total, top = take_in(acc, total, top, queries, keys, values, seen, scale, KEYS, PRECISION)
    if SPLIT:  # noqa: SIM102  # known when compiled; the other is not
        if spoiled > 0:
            for place in range(end, hi):
                one = place + tl.arange(0, 1)
                seen = uncovered(one, positions, reach, first, last, most, anchor_lo, anchor_hi)
                row = load_rows(v, one * wide_v, 1, stride_vd, True, V_HEAD_DIM, BLOCK_DV, False)
                acc = add_non_finite(acc, row, seen)
    return acc, total, top


@triton.jit(do_not_specialize=("stride_stops", "heads", "chunks", "places", "slots", "q_start", "reach", "most_ranges"))
def attend_routed(
    q, k, v, entries, ptr, tile_ptr, chunk_lo, stops, run_of_row, anchor_ptr, anchor_lo, anchor_hi, out, lse,
    stride_qb, stride_ql, stride_qh, stride_qd, stride_kb, stride_kl, stride_kh, stride_kd,
    stride_vb, stride_vl, stride_vh, stride_vd, stride_stops, heads, chunks, places, slots, q_start, reach,
    most_ranges, scale,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend a tile of rows to the chunk that they chose, each row to its own place: (b, h, row * slots + slot).

    Grid (bound on tiles, heads, batch): programs beyond the last tile do nothing.

    Args:
        q, k, v: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        entries: int32 (batch, heads, places), rows * slots + slot by chunk, ascending within it.
        ptr, tile_ptr: int32 (batch, heads, chunks + 1), entries and tiles of BLOCK_M of them before each chunk.
        chunk_lo, stops: (chunks,) and (batch or 1, chunks), the valid keys of each chunk.
        run_of_row, anchor_ptr, anchor_lo, anchor_hi: see `geometry.Runs`; read where SPLIT.
        out: (batch, heads, places, v_head_dim), normalised partial outputs.
        lse: float32 (batch, heads, places), base 2.
    """
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lane = (batch * heads + head).to(tl.int64)
    tile_ptr += lane * (chunks + 1)
    if tile < tl.load(tile_ptr + chunks):
        chunk = find_chunk(tile_ptr, tile, chunks)
        ptr += lane * (chunks + 1) + chunk
        place = tl.load(ptr) + (tile - tl.load(tile_ptr + chunk)) * BLOCK_M + tl.arange(0, BLOCK_M)
        valid = place < tl.load(ptr + 1)
        entry = tl.load(entries + lane * places + place, mask=valid, other=0)
        rows = entry // slots
        q += batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
        k += batch.to(tl.int64) * stride_kb + (head // GROUP).to(tl.int64) * stride_kh
        v += batch.to(tl.int64) * stride_vb + (head // GROUP).to(tl.int64) * stride_vh
        queries = load_rows(q, rows.to(tl.int64), stride_ql, stride_qd, valid, HEAD_DIM, BLOCK_D, True)
        acc, total, top = empty_state(BLOCK_M, BLOCK_DV)
        acc, total, top = attend_chunk(
            acc, total, top, queries, k, v, rows, valid, tl.load(chunk_lo + chunk),
            tl.load(stops + batch * stride_stops + chunk), scale, q_start, reach, most_ranges,
            run_of_row, anchor_ptr, anchor_lo, anchor_hi, stride_kl, stride_kd, stride_vl, stride_vd,
            HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, BLOCK_N, SPLIT, PRECISION,
        )  # fmt: skip
        partial, logs = finish(acc, total, top)
        columns = tl.arange(0, BLOCK_DV)
        target = lane * places + entry
        kept = valid[:, None] & (columns < V_HEAD_DIM)[None, :]
        tl.store(out + target[:, None] * V_HEAD_DIM + columns[None, :], partial.to(out.dtype.element_ty), mask=kept)
        tl.store(lse + target, logs, mask=valid)
