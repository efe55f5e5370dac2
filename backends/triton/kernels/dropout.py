"""Route dropout: random routes taken away, random candidates added, the same on every backend.

The words come from Philox4x32-10 with the key = seed and the counter = (batch, head, position of the unit, draw): draw
0 says how many routes go and how many come, draw 1 + j // 4 holds the own word of chunk j of the sample.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.best import LAST, NOTHING, chunks_of, keep_best, open_list, packed, write_rows
from sparsemoc.backends.triton.kernels.candidates import is_candidate


@triton.jit
def _wide(words):
    """Return the int64 whose low and high words lie side by side: not every array library has int64."""
    low = tl.load(words).to(tl.uint32, bitcast=True).to(tl.int64)
    return (tl.load(words + 1).to(tl.int64) << 32) | low


@triton.jit
def _key(word, chunk):
    """Return the key under which the smallest word is the best; equal words go to the lower chunk."""
    return packed(word.to(tl.int32, bitcast=True) ^ 0x7FFFFFFF, chunk)


@triton.jit
def _own_word(seed, batch, head, position, chunk):
    """Return the own word of each chunk, (M, K), one draw for each."""
    w0, w1, w2, w3 = tl.philox(seed, batch[:, None], head, position[:, None], 1 + chunk // 4)
    number = chunk % 4
    return tl.where(number < 2, tl.where(number == 0, w0, w1), tl.where(number == 2, w2, w3))


@triton.jit
def _words(seed, batch, head, position, start, CHUNKS: tl.constexpr):
    """Return the own words of chunks start ... start + CHUNKS - 1, (M, CHUNKS), one draw for four; 4 divides start."""
    draw = 1 + start // 4 + tl.arange(0, CHUNKS // 4)
    w0, w1, w2, w3 = tl.philox(seed, batch[:, None], head, position[:, None], draw[None, :])
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def _counts(seed, batch, head, position, routes, off, thresholds, into_max):
    """Return d, how many of a unit's routes go, and m, how many others come; int32 (M,)."""
    w0, w1, _, _ = tl.philox(seed, batch, head, position, tl.zeros_like(position))
    removed = (w0.to(tl.uint64) * tl.cast(off, tl.uint64) * routes.to(tl.uint64)) >> 48
    added = tl.zeros_like(position)
    for count in range(into_max):
        added += (w1.to(tl.int64) >= _wide(thresholds + 2 * count)).to(tl.int32)
    return removed.to(tl.int32), added


@triton.jit(
    do_not_specialize=(
        "units", "rows", "words", "near", "reach", "q_start", "pieces", "slots", "into_max", "off", "batch_start",
        "head_start", "stride_stops", "stride_bits", "stride_near",
    )
)  # fmt: skip
def drop_kernel(
    selected, unit_row, unit_rows, unit_run, unit_runs, unit_position, unit_sample, run_lo, run_hi, run_chunk,
    run_base, stops, bits, first, last, near_first, envelope, seed, thresholds,
    units, rows, words, near, reach, q_start, pieces, slots, into_max, off, batch_start, head_start,
    stride_stops, stride_bits, stride_near,
    UNITS: tl.constexpr, CHUNKS: tl.constexpr, SLOTS: tl.constexpr, BLOCKS: tl.constexpr, WINDOW: tl.constexpr,
    STARTS: tl.constexpr,
):  # fmt: skip
    """Apply route dropout to the selection of UNITS routing units. Grid (ceil(units / UNITS), heads, batch).

    Args:
        selected: int32 (batch, heads, rows, slots), contiguous; read and rewritten. Routes before dropout lie in the
            first slots - into_max.
        unit_row, unit_rows, unit_run, unit_runs, unit_position, unit_sample: see `geometry.Units`.
        run_lo, run_hi, run_chunk, run_base, stops, bits, first, last, near_first: as in `route_kernel`.
        envelope: int32 (tiles, 2), for each program the range of chunks that holds its candidates, counted from the
            first chunk of the sample; it starts at a multiple of CHUNKS.
        seed: int32 (2,), its words, low before high; with STARTS int32 (4,), batch_start and head_start behind them.
        thresholds: int32 (into_max, 2), likewise the words of `spec.philox.poisson_table`.
        off: floor(p_max * 2**16).
        batch_start, head_start: global numbers of the first batch row and head, low 32 bits; 0 with STARTS.
        CHUNKS: candidates to a step, a multiple of 4.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, batch = tl.program_id(1), tl.program_id(2)
    batch_wide = batch.to(tl.int64)
    unit = tile * UNITS + tl.arange(0, UNITS)
    slot = tl.arange(0, SLOTS)
    inside = unit < units
    run = tl.load(unit_run + unit, mask=inside, other=0)
    runs = tl.load(unit_runs + unit, mask=inside, other=0)
    row = tl.load(unit_row + unit, mask=inside, other=0)
    count = tl.load(unit_rows + unit, mask=inside, other=0)
    position = tl.load(unit_position + unit, mask=inside, other=0)
    own = tl.load(run_chunk + run)
    row_hi = tl.minimum(row + count, tl.load(stops + batch_wide * stride_stops + own) - q_start)

    key, number = _wide(seed), head + head_start
    counter = batch + batch_start + tl.load(unit_sample + unit, mask=inside, other=0)
    if STARTS:
        counter += tl.load(seed + 2)
        number += tl.load(seed + 3)
    out = selected + (batch_wide * tl.num_programs(1) + head) * rows * slots
    routes = out + row.to(tl.int64) * slots
    used = (row < row_hi)[:, None] & (slot < slots - into_max)[None, :]
    chosen = tl.load(routes[:, None] + slot[None, :], mask=used, other=-1)
    total = tl.sum((chosen >= 0).to(tl.int32), axis=1)
    removed, added = _counts(key, counter, number, position, total, off, thresholds, into_max)

    keys = tl.where(chosen >= 0, _key(_own_word(key, counter, number, position, chosen), chosen), NOTHING)
    # d < |R|, so that the list of those to go is full, and what is not below its worst is in it; CLOSED if d is 0.
    worst = tl.min(keep_best(open_list(slot, 0, removed), keys), axis=1)
    stay = (chosen >= 0) & (keys < worst[:, None])

    kept = open_list(slot, slots - into_max, added)
    begin, end = tl.load(envelope + 2 * tile), tl.load(envelope + 2 * tile + 1)
    end = tl.where(tl.max(added, axis=0) > 0, end, begin)
    base = tl.load(run_base + run)
    own_bits, own_first = bits + batch_wide * stride_bits, first + batch_wide * stride_near
    own_last = last + batch_wide * stride_near
    for start in range(begin, end, CHUNKS):
        chunk = (start + tl.arange(0, CHUNKS))[None, :]
        others = is_candidate(
            run, runs, row, row_hi, start, base[:, None] + chunk, run_lo, run_hi, own_bits, own_first, own_last,
            near_first, words, near, reach, q_start, pieces, BLOCKS, WINDOW,
        )  # fmt: skip
        for taken in range(slots - into_max):
            others = others & (tl.load(routes + taken, mask=row < row_hi, other=-1)[:, None] != chunk)
        offered = _key(_words(key, counter, number, position, start, CHUNKS), chunk)
        kept = keep_best(kept, tl.where(others, offered, NOTHING))

    chunks = tl.where(slot[None, :] < slots - into_max, tl.where(stay, chosen, LAST), chunks_of(kept))
    # Every thread has read the routes before any is written over.
    tl.debug_barrier()
    write_rows(out, chunks, row, row_hi, count, slot, slots, BLOCKS)
