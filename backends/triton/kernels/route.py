"""Routing: scores against centroids, the candidate mask and a running top-k in one pass over centroid tiles.

Scores must be right to float32 whatever the dtype, at the speed of the tensor cores: a float32 number is the sum of
three bfloat16 pieces of 8 bits each, and products of pieces are exact. Terms below 2**-24 of the largest are left out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.best import LAST, NOTHING, chunks_of, keep_best, open_list, packed, write_rows
from sparsemoc.backends.triton.kernels.candidates import is_candidate
from sparsemoc.backends.triton.kernels.tile import dot

#: Keeps the sign, the exponent and 7 bits of a float32: what bfloat16 holds.
_HIGH = tl.constexpr(-(2**16))


@triton.jit
def _high(x):
    """Return the highest 8 bits of float32 numbers, exact in bfloat16; NaN stays NaN, whichever bits make it one."""
    cut = (x.to(tl.int32, bitcast=True) & _HIGH).to(tl.float32, bitcast=True)
    return tl.where(x == x, cut, x)


@triton.jit
def _rest(x, high):
    """Return x - high, exact; 0 where x is not finite, so that infinity is one piece and not a NaN."""
    rest = x - high
    return tl.where(rest == rest, rest, 0.0)


@triton.jit
def _pieces(x):
    """Return three bfloat16 arrays whose sum is the float32 x."""
    first = _high(x)
    rest = _rest(x, first)
    second = _high(rest)
    return first.to(tl.bfloat16), second.to(tl.bfloat16), _rest(rest, second).to(tl.bfloat16)


@triton.jit(do_not_specialize=("chunks", "planes_chunks"))
def split_kernel(
    centroids, planes,
    stride_b, stride_h, stride_c, stride_d, chunks, planes_chunks,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Cut centroids into bfloat16 pieces, once for all queries. Grid (planes_chunks / ROWS, kv_heads, batch).

    Args:
        centroids: float32 (batch, kv_heads, chunks, HEAD_DIM), any strides.
        planes: bfloat16 (batch, kv_heads, 3, planes_chunks, BLOCK_D), contiguous, 0 beyond chunks and HEAD_DIM.
    """
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    chunk = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    place = chunk.to(tl.int64)[:, None] * stride_c + dims[None, :] * stride_d
    real = (chunk < chunks)[:, None] & (dims < HEAD_DIM)[None, :]
    x = tl.load(centroids + batch * stride_b + head * stride_h + place, mask=real, other=0.0)
    first, second, third = _pieces(x)
    plane = planes_chunks.to(tl.int64) * BLOCK_D
    out = planes + (batch * tl.num_programs(1) + head) * 3 * plane
    out += chunk.to(tl.int64)[:, None] * BLOCK_D + dims[None, :]
    tl.store(out, first)
    tl.store(out + plane, second)
    tl.store(out + 2 * plane, third)


@triton.jit
def _mean_rows(base, row, row_hi, most, stride_l, dims, HEAD_DIM: tl.constexpr):
    """Return (M, BLOCK_D), the float32 mean of rows row ... row_hi - 1 of each unit, at most `most`; 0 for none."""
    total = tl.zeros((row.shape[0], dims.shape[0]), tl.float32)
    for member in range(most):
        inside = (row + member < row_hi)[:, None] & (dims < HEAD_DIM)[None, :]
        place = base + (row + member).to(tl.int64)[:, None] * stride_l
        total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    count = tl.maximum(row_hi - row, 1).to(tl.float32)
    return tl.div_rn(total, tl.broadcast_to(count[:, None], total.shape))


@triton.jit
def _scores(q1, q2, q3, m1, m2, m3, PIECES: tl.constexpr):
    """Return q @ m to float32 accuracy; small terms first, the largest apart.

    Where the largest term is not finite it is the score: a small one may be infinity times a piece that is 0.
    """
    small = dot(q1, m3, "ieee")
    if PIECES >= 3:
        small += dot(q3, m1, "ieee")
    if PIECES >= 2:
        small += dot(q2, m2, "ieee")
        small += dot(q2, m1, "ieee")
    small += dot(q1, m2, "ieee")
    large = dot(q1, m1, "ieee")
    return tl.where(large - large == 0.0, large + small, large)


@triton.jit
def _rank(score):
    """Return int32 that orders as scores do: -0 as 0, NaN above all."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(score == score, order, 0x7FFFFFFF)


@triton.jit(
    do_not_specialize=(
        "units", "rows", "planes_chunks", "words", "near", "reach", "q_start", "pieces", "slots",
        "stride_stops", "stride_bits", "stride_near",
    )
)  # fmt: skip
def route_kernel(
    q, planes, unit_row, unit_rows, unit_run, unit_runs, run_lo, run_hi, run_chunk, run_base,
    stops, bits, first, last, near_first, envelope, top_k, selected,
    stride_qb, stride_ql, stride_qh, stride_qd,
    units, rows, planes_chunks, words, near, reach, q_start, pieces, slots, stride_stops, stride_bits, stride_near,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, UNITS: tl.constexpr, CHUNKS: tl.constexpr,
    SLOTS: tl.constexpr, PIECES: tl.constexpr, BLOCKS: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Select the top_k candidates of UNITS routing units by score. Grid (ceil(units / UNITS), heads, batch).

    s(u, j) = <mean of the unit's valid rows of q, m_j>; ties go to the lower chunk, NaN comes first. Every element of
    `selected` is written; no score is.

    Args:
        q: (batch, rows, heads, HEAD_DIM), any strides.
        planes: the centroids' pieces, see `split_kernel`.
        selected: int32 (batch, heads, rows, slots), contiguous.
        unit_row, unit_rows, unit_run, unit_runs: see `geometry.Units`; run_lo, run_hi, run_chunk, run_base: see
            `geometry.Runs`.
        stops: int32 (batch or 1, chunks), end of the valid positions of each chunk.
        bits, first, last, near_first: see `candidates.Candidates` and `candidates.Near`.
        envelope: int32 (tiles, 2), for each program the range of chunks that holds its candidates; it starts at a
            multiple of CHUNKS.
        top_k: int32 (heads,).
        pieces: most runs of a unit.
        PIECES: bfloat16 pieces that hold a unit's query: 1 for bfloat16 rows, 2 for float16 rows, else 3.
        BLOCKS: whether units are blocks of rows; otherwise unit u is row u.
    """
    # The last tiles first: under causality they have the most candidates.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    unit = tile * UNITS + tl.arange(0, UNITS)
    slot, dims = tl.arange(0, SLOTS), tl.arange(0, BLOCK_D)
    inside = unit < units
    run = tl.load(unit_run + unit, mask=inside, other=0)
    runs = tl.load(unit_runs + unit, mask=inside, other=0)
    row = tl.load(unit_row + unit, mask=inside, other=0)
    count = tl.load(unit_rows + unit, mask=inside, other=0)
    own = tl.load(run_chunk + run)
    row_hi = tl.minimum(row + count, tl.load(stops + batch * stride_stops + own) - q_start)

    base = q + batch * stride_qb + head.to(tl.int64) * stride_qh + dims[None, :] * stride_qd
    if BLOCKS:
        query = _mean_rows(base, row, row_hi, tl.max(count, axis=0), stride_ql, dims, HEAD_DIM)
    else:
        shown = (row < row_hi)[:, None] & (dims < HEAD_DIM)[None, :]
        query = tl.load(base + row.to(tl.int64)[:, None] * stride_ql, mask=shown, other=0.0)
    if PIECES == 1:
        q1, q2, q3 = query, query, query
    else:
        q1, q2, q3 = _pieces(query.to(tl.float32))

    plane = planes_chunks.to(tl.int64) * BLOCK_D
    kv_head = batch * (tl.num_programs(1) // GROUP) + head // GROUP
    means = planes + kv_head * 3 * plane + dims[:, None]
    own_bits, own_first, own_last = bits + batch * stride_bits, first + batch * stride_near, last + batch * stride_near
    kept = open_list(slot, 0, tl.load(top_k + head + tl.zeros((UNITS,), tl.int32)))
    begin, end = tl.load(envelope + 2 * tile), tl.load(envelope + 2 * tile + 1)
    for start in tl.range(begin, end, CHUNKS, num_stages=STAGES):
        chunk = (start + tl.arange(0, CHUNKS))[None, :]
        place = means + chunk * BLOCK_D
        score = _scores(q1, q2, q3, tl.load(place), tl.load(place + plane), tl.load(place + 2 * plane), PIECES)
        taken = is_candidate(
            run, runs, row, row_hi, start, chunk, run_lo, run_hi, own_bits, own_first, own_last, near_first,
            words, near, reach, q_start, pieces, BLOCKS, WINDOW,
        )  # fmt: skip
        kept = keep_best(kept, tl.where(taken, packed(_rank(score), chunk), NOTHING))

    chunks = chunks_of(kept)
    chunks = tl.where(chunks == LAST, LAST, chunks - tl.load(run_base + run)[:, None])
    out = selected + (batch * tl.num_programs(1) + head) * rows * slots
    write_rows(out, chunks, row, row_hi, count, slot, slots, BLOCKS)
