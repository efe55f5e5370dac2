"""Candidates on the device: the kernel that tabulates them by run, and the test of one (unit, chunk) pair."""

from __future__ import annotations

import triton
import triton.language as tl

#: Earlier than every position.
BEFORE_ALL = tl.constexpr(-(2**31))


@triton.jit(do_not_specialize=("chunks", "runs", "words", "near", "stride_stops"))
def candidates_kernel(
    chunk_lo, stops, anchor_ptr, anchor_lo, anchor_hi, allowed, near_first,
    bits, first, last,
    chunks, runs, words, near, stride_stops,
    WORDS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Tabulate the candidates of one run, for WORDS * 32 chunks. Grid (runs, ceil(words / WORDS), batch or 1).

    The valid keys of chunk c are chunk_lo[c] ... stops[b, c] - 1. The run's anchors are disjoint, ascending ranges; one
    that holds the first key still left moves it to the range's end. The chunk stays where a key is left.

    Args:
        chunk_lo: int32 (chunks,); stops: int32 (batch or 1, chunks).
        anchor_ptr, anchor_lo, anchor_hi, allowed: see `geometry.Runs`.
        near_first: int32 (runs,), first chunk that the run's token windows reach.
        bits: int32 (batch or 1, runs, words), `allowed` without the chunks that are covered whole.
        first, last: int32 (batch or 1, runs, near), first and last key left of chunk near_first[run] + n.
        WINDOW: whether there are token windows, so that `first` and `last` are wanted.
    """
    run, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    chunk = word[:, None] * 32 + bit[None, :]
    real = chunk < chunks
    lo = tl.load(chunk_lo + chunk, mask=real, other=0)
    stop = tl.load(stops + batch * stride_stops + chunk, mask=real, other=0)
    begin, end = tl.load(anchor_ptr + run), tl.load(anchor_ptr + run + 1)

    left = lo
    for entry in range(begin, end):
        covered_lo, covered_hi = tl.load(anchor_lo + entry), tl.load(anchor_hi + entry)
        left = tl.where((covered_lo <= left) & (left < covered_hi), covered_hi, left)
    shown = tl.sum((left < stop).to(tl.int32) << bit[None, :], axis=1)
    permitted = tl.load(allowed + run * words + word, mask=word < words, other=0)
    tl.store(bits + (batch * runs + run) * words + word, shown & permitted, mask=word < words)

    if WINDOW:
        right = stop
        for step in range(end - begin):
            covered_lo, covered_hi = tl.load(anchor_lo + end - 1 - step), tl.load(anchor_hi + end - 1 - step)
            right = tl.where((covered_lo < right) & (right <= covered_hi), covered_lo, right)
        place = chunk - tl.load(near_first + run)
        kept = real & (place >= 0) & (place < near)
        row = (batch * runs + run) * near
        tl.store(first + row + place, left, mask=kept)
        tl.store(last + row + place, right - 1, mask=kept)


@triton.jit
def _run_bits(run, present, bits, start, chunk, words):
    """Return (M, N): whether the bits of each run hold `chunk`; False where not present.

    Where all units ask for the same chunks, (1, N), these are neighbours from `start` on and lie in the same words: one
    load for each row and word, and no tile of addresses that would give the scores' tile another layout.
    """
    if chunk.shape[0] == 1:
        word = tl.zeros((run.shape[0], chunk.shape[1]), tl.int32)
        for step in tl.static_range((chunk.shape[1] + 31) // 32):
            number = start // 32 + step
            held = present & (tl.zeros_like(run) + number < words)
            loaded = tl.load(bits + run * words + number, mask=held, other=0)
            word = tl.where(chunk // 32 == number, loaded[:, None], word)
    else:
        held = present[:, None] & (chunk < words * 32)
        word = tl.load(bits + run[:, None] * words + chunk // 32, mask=held, other=0)
    return ((word >> (chunk % 32)) & 1) != 0


@triton.jit
def _run_takes(run, lo, hi, start, chunk, bits, first, last, near_first, words, near, reach, WINDOW: tl.constexpr):
    """Return (M, N): whether a run has `chunk` as a candidate for its queries lo ... hi - 1, in positions.

    A window covers what is left of a chunk where it holds the first and the last key left: of all queries together
    those of hi - 1 - reach and lo + reach decide, for each reaches no further down, or up.
    """
    present = lo < hi
    taken = _run_bits(run, present, bits, start, chunk, words)
    if WINDOW:
        place = chunk - tl.load(near_first + run, mask=present, other=0)[:, None]
        inside = taken & (place >= 0) & (place < near)
        # Most tiles of chunks lie out of reach of most runs.
        if tl.max(tl.max(inside.to(tl.int32), axis=1), axis=0) > 0:
            below = tl.load(first + run[:, None] * near + place, mask=inside, other=BEFORE_ALL)
            above = tl.load(last + run[:, None] * near + place, mask=inside, other=BEFORE_ALL)
            beyond = (below < (hi - 1 - reach)[:, None]) | (above > (lo + reach)[:, None])
            taken = taken & beyond
    return taken


@triton.jit
def is_candidate(
    unit_run, unit_runs, row_lo, row_hi, start, chunk, run_lo, run_hi, bits, first, last, near_first,
    words, near, reach, q_start, pieces,
    BLOCKS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Return (M, N): whether chunk is a candidate of any member of a unit.

    Args:
        unit_run, unit_runs: int32 (M,), first run and number of runs of each unit.
        row_lo, row_hi: int32 (M,), its valid rows; none where row_lo >= row_hi.
        start, chunk: int32; chunk is (1, N), start ... start + N - 1 with N a power of two that divides start, or
            (M, N) of any kind.
        run_lo, run_hi, bits, first, last, near_first: the tables; those by batch row start at the unit's.
        words, near, reach, q_start: their widths, half the token window, position of row 0.
        pieces: most runs of a unit.
        BLOCKS: whether units are blocks of rows, not single rows.
    """
    if BLOCKS:
        taken = tl.zeros((row_lo.shape[0], chunk.shape[1]), tl.int1)
        for piece in range(pieces):
            run = unit_run + piece
            touched = piece < unit_runs
            lo = tl.maximum(tl.load(run_lo + run, mask=touched, other=0), row_lo)
            hi = tl.minimum(tl.load(run_hi + run, mask=touched, other=0), row_hi)
            taken = taken | _run_takes(
                run, lo + q_start, hi + q_start, start, chunk, bits, first, last, near_first, words, near, reach, WINDOW
            )
        return taken
    else:
        return _run_takes(
            unit_run, row_lo + q_start, row_hi + q_start, start, chunk, bits, first, last, near_first,
            words, near, reach, WINDOW,
        )  # fmt: skip
