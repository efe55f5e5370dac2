"""Gradients of keys and values, key-stationary: a tile of keys against every row that sees one of them.

The rows come from two lists: the rectangles of anchors that the tile meets, consecutive rows; and the entries of the
tile's chunk, gathered rows. The work of a tile is counted in tiles of BLOCK_M rows: for each query head of the group
the anchored ones, then the routed ones. A tile with more than `segment` of them is split: programs of their own take
`segment` each and write float32 sums to a place of their own, and `join_segments` adds those in order. So each sum has
one order, whatever runs when.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsemoc.backends.triton.kernels.coverage import FAR, overlap, uncovered
from sparsemoc.backends.triton.kernels.routed import find_chunk
from sparsemoc.backends.triton.kernels.slopes import finite, slope_product, slopes
from sparsemoc.backends.triton.kernels.softmax import load_rows
from sparsemoc.backends.triton.kernels.tile import dot

#: More tiles of rows than any work has.
ALL = tl.constexpr(2**30)


@triton.jit
def _take_in(
    d_keys, d_values, keys, values, rows, live, seen, q, d_out, shift, delta, dq,
    stride_ql, stride_qd, stride_ol, stride_od, scale, lift,
    HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PADDED: tl.constexpr, MASKED: tl.constexpr, ADD_DQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what a tile of rows gives the keys, and, where ADD_DQ, what the keys give the rows.

    Args:
        d_keys, d_values: (N, D) and (N, Dv), float32 sums.
        keys, values: (N, D) and (N, Dv).
        rows: (M,); those not `live` are left out.
        seen: (N, M) or (N, 1), the pairs that count, rows that see no key at all aside.
        q, d_out, shift, delta, dq: at the batch row and head; see `grads`.
        MASKED: whether live rows and valid keys make pairs that do not count.
    """
    row_shift = tl.load(shift + rows, mask=live, other=float("-inf"))
    row_delta = tl.load(delta + rows, mask=live, other=0.0)
    sees = row_shift != float("-inf")
    # A padded row may hold anything, and what is not finite must stay out of the products where they are masked.
    # Elsewhere the loads need not wait for `shift` and `delta`.
    shown_q = live
    shown_d_out = live
    if PADDED:
        shown_q = sees
        shown_d_out = sees
    if MASKED:
        shown_q = sees & (row_shift == row_shift)  # not NaN
        shown_d_out = sees & (row_delta == row_delta)
    at = rows.to(tl.int64)
    queries = load_rows(q, at, stride_ql, stride_qd, shown_q, HEAD_DIM, BLOCK_D, True)
    d_outs = load_rows(d_out, at, stride_ol, stride_od, shown_d_out, V_HEAD_DIM, BLOCK_DV, True)
    logits = dot(keys, tl.trans(queries), PRECISION) * scale
    d_weights = dot(values, tl.trans(d_outs), PRECISION)
    weights, slope = slopes(logits, d_weights, row_shift[None, :], row_delta[None, :], seen & sees[None, :], lift)
    d_values += dot(weights.to(d_outs.dtype), d_outs, PRECISION)
    if ADD_DQ:
        columns = tl.arange(0, BLOCK_D)
        d_queries = slope_product(tl.trans(slope), keys, PRECISION)
        kept = sees[:, None] & (columns < HEAD_DIM)[None, :]
        tl.atomic_add(dq + rows[:, None] * HEAD_DIM + columns[None, :], d_queries, mask=kept, sem="relaxed")
    d_keys += slope_product(slope, queries, PRECISION)
    if MASKED:
        left_out = sees & (row_delta != row_delta)
        if tl.max(left_out.to(tl.int32), 0) > 0:
            spoiled = load_rows(d_out, at, stride_ol, stride_od, left_out, V_HEAD_DIM, BLOCK_DV, True)
            d_values = _add_one_by_one(d_values, weights, spoiled)
    return d_keys, d_values


@triton.jit
def _add_one_by_one(d_values, weights, d_outs):
    """Add weights @ d_outs, (N, M) @ (M, Dv), where a row of d_outs counts only for weights that are not 0."""
    columns = tl.arange(0, weights.shape[1])
    for row in range(weights.shape[1]):
        weight = tl.sum(tl.where(columns[None, :] == row, weights, 0.0), 1)
        d_out = tl.sum(tl.where(columns[:, None] == row, d_outs.to(tl.float32), 0.0), 0)
        d_values += tl.where(weight[:, None] != 0.0, weight[:, None] * d_out[None, :], 0.0)
    return d_values


@triton.jit
def grads(
    q, k, v, d_out, shift, delta, dq, entries, ptr, stops,
    tile_lo, tile_hi, tile_chunk, meeting_ptr, row_lo, row_full, row_hi, key_lo, key_hi, banded, split_ptr,
    run_of_row, anchor_ptr, anchor_lo, anchor_hi, dk, dv, dk_parts, dv_parts,
    stride_qb, stride_ql, stride_qh, stride_qd, stride_kb, stride_kl, stride_kh, stride_kd,
    stride_vb, stride_vl, stride_vh, stride_vd, stride_ob, stride_ol, stride_oh, stride_od,
    stride_dkb, stride_dkl, stride_dkh, stride_dkd, stride_dvb, stride_dvl, stride_dvh, stride_dvd, stride_stops,
    rows_all, places, slots, chunks, key_tiles, parts, segment, q_start, reach, ahead, most_ranges,
    scale, lift, dk_factor, dv_factor,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, V_HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PADDED: tl.constexpr,
    PARTIAL: tl.constexpr, SPLIT: tl.constexpr, ADD_DQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dk = dS^T q and dv = P^T d_out of a tile of keys; where ADD_DQ, add dS k to dq.

    Grid (parts + key_tiles, kv_heads, batch): a program for each part of the split tiles, then one for each tile.

    Args:
        q, k, v, d_out: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        shift, delta: float32 (batch, heads, rows), see `delta.row_constants`.
        dq: float32 (batch, heads, rows, head_dim), added to by atomics, without the factor of the logits.
        dk, dv: like k and v, any strides; every element is written, but for those of split tiles.
        dk_parts, dv_parts: float32 (batch, kv_heads, parts, BLOCK_N, BLOCK_D or BLOCK_DV), sums of segments.
        entries: int32 (batch, heads, places), row * slots + slot by chunk.
        ptr: int32 (batch, heads, chunks + 1), entries before each chunk.
        stops: int32 (batch or 1, chunks), end of the valid keys of each chunk.
        tile_lo ... banded: see `key_tiles.KeyTiles`.
        split_ptr: int32 (batch, kv_heads, key_tiles + 1), parts before each tile.
        run_of_row, anchor_ptr, anchor_lo, anchor_hi: see `geometry.Runs`; read where SPLIT.
        scale: factor on the logits, log2(e) included.
        lift: see `slopes`.
        dk_factor, dv_factor: on the sums, when they are written.
        ahead: by how much a key may be later than its row: 0 under token causality, else `FAR`.
        PARTIAL: whether any meeting has rows that see a part of a tile.
        SPLIT: whether anchors may hold a part of a chosen chunk.
    """
    number, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_lane = (batch * tl.num_programs(1) + kv_head).to(tl.int64)
    split_ptr += kv_lane * (key_tiles + 1)
    is_part = number < parts
    tile = tl.where(is_part, find_chunk(split_ptr, number, key_tiles), number - parts)
    before = tl.load(split_ptr + tile)
    own_parts = tl.load(split_ptr + tile + 1) - before
    begin = tl.where(is_part, (number - before) * segment, 0)
    end = tl.where(is_part, begin + segment, ALL)
    # There are places for more parts than may be needed, and a tile that has parts is left to them.
    if tl.where(is_part, number - before < own_parts, own_parts == 0):
        chunk = tl.load(tile_chunk + tile)
        lo = tl.load(tile_lo + tile)
        hi = tl.minimum(tl.load(tile_hi + tile), tl.load(stops + batch * stride_stops + chunk))
        # Without a valid key there is no work, but there are zeros to be written.
        end = tl.where(lo < hi, end, begin)
        offsets = tl.arange(0, BLOCK_N)
        positions = lo + offsets
        valid = positions < hi
        key_rows = positions.to(tl.int64)
        k += batch.to(tl.int64) * stride_kb + kv_head.to(tl.int64) * stride_kh
        v += batch.to(tl.int64) * stride_vb + kv_head.to(tl.int64) * stride_vh
        keys = load_rows(k, key_rows, stride_kl, stride_kd, valid, HEAD_DIM, BLOCK_D, True)
        values = load_rows(v, key_rows, stride_vl, stride_vd, valid, V_HEAD_DIM, BLOCK_DV, True)
        if PARTIAL or SPLIT:
            keys = finite(keys)
        d_keys = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        d_values = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
        done = begin * 0
        for member in range(GROUP):
            head = kv_head * GROUP + member
            lane = (batch * tl.num_programs(1) * GROUP + head).to(tl.int64)
            own_q = q + batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh
            own_d_out = d_out + batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
            own_shift = shift + lane * rows_all
            own_delta = delta + lane * rows_all
            own_dq = dq + lane * rows_all * HEAD_DIM
            for meeting in range(tl.load(meeting_ptr + tile), tl.load(meeting_ptr + tile + 1)):
                full = tl.load(row_full + meeting)
                if PARTIAL:
                    start = tl.load(row_lo + meeting)
                    count = tl.cdiv(full - start, BLOCK_M)
                    inside = valid & (positions >= tl.load(key_lo + meeting)) & (positions < tl.load(key_hi + meeting))
                    near = tl.where(tl.load(banded + meeting) > 0, reach, FAR)
                    for index in range(tl.maximum(begin - done, 0), tl.minimum(end - done, count)):
                        rows = start + index * BLOCK_M + tl.arange(0, BLOCK_M)
                        distance = positions[:, None] - (rows + q_start)[None, :]
                        seen = inside[:, None] & (distance <= ahead) & (tl.abs(distance) <= near)
                        d_keys, d_values = _take_in(
                            d_keys, d_values, keys, values, rows, rows < full, seen,
                            own_q, own_d_out, own_shift, own_delta, own_dq,
                            stride_ql, stride_qd, stride_ol, stride_od, scale, lift,
                            HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, PADDED, True, ADD_DQ, PRECISION,
                        )  # fmt: skip
                    done += count
                stop = tl.load(row_hi + meeting)
                count = tl.cdiv(stop - full, BLOCK_M)
                for index in range(tl.maximum(begin - done, 0), tl.minimum(end - done, count)):
                    rows = full + index * BLOCK_M + tl.arange(0, BLOCK_M)
                    d_keys, d_values = _take_in(
                        d_keys, d_values, keys, values, rows, rows < stop, valid[:, None],
                        own_q, own_d_out, own_shift, own_delta, own_dq,
                        stride_ql, stride_qd, stride_ol, stride_od, scale, lift,
                        HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, PADDED, False, ADD_DQ, PRECISION,
                    )  # fmt: skip
                done += count
            own_ptr = ptr + lane * (chunks + 1) + chunk
            own_entries = entries + lane * places
            start, stop = tl.load(own_ptr), tl.load(own_ptr + 1)
            count = tl.cdiv(stop - start, BLOCK_M)
            for index in range(tl.maximum(begin - done, 0), tl.minimum(end - done, count)):
                place = start + index * BLOCK_M + tl.arange(0, BLOCK_M)
                live = place < stop
                rows = tl.load(own_entries + place, mask=live, other=0) // slots
                seen = valid[:, None]
                if SPLIT:
                    first, last = overlap(rows, live, lo, hi, run_of_row, anchor_ptr, anchor_lo, anchor_hi, most_ranges)
                    most = tl.max(last - first, 0)
                    free = uncovered(positions, rows + q_start, reach, first, last, most, anchor_lo, anchor_hi)
                    seen = seen & tl.trans(free)
                d_keys, d_values = _take_in(
                    d_keys, d_values, keys, values, rows, live, seen,
                    own_q, own_d_out, own_shift, own_delta, own_dq,
                    stride_ql, stride_qd, stride_ol, stride_od, scale, lift,
                    HEAD_DIM, V_HEAD_DIM, BLOCK_D, BLOCK_DV, PADDED, SPLIT, ADD_DQ, PRECISION,
                )  # fmt: skip
            done += count
        # What a padded key, loaded as 0, has gathered is no gradient.
        d_keys = tl.where(valid[:, None], d_keys, 0.0)
        d_values = tl.where(valid[:, None], d_values, 0.0)
        if is_part:
            place = (kv_lane * parts + number) * BLOCK_N
            _store_part(dk_parts + place * BLOCK_D, d_keys, BLOCK_N, BLOCK_D)
            _store_part(dv_parts + place * BLOCK_DV, d_values, BLOCK_N, BLOCK_DV)
        else:
            own = positions < tl.load(tile_hi + tile)
            dk += batch.to(tl.int64) * stride_dkb + kv_head.to(tl.int64) * stride_dkh
            dv += batch.to(tl.int64) * stride_dvb + kv_head.to(tl.int64) * stride_dvh
            _store_rows(dk, key_rows, stride_dkl, stride_dkd, own, d_keys * dk_factor, HEAD_DIM, BLOCK_D)
            _store_rows(dv, key_rows, stride_dvl, stride_dvd, own, d_values * dv_factor, V_HEAD_DIM, BLOCK_DV)


@triton.jit
def _store_part(target, sums, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK_N)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(target + place, sums)


@triton.jit
def _store_rows(target, rows, stride, stride_d, own, sums, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    place = target + rows[:, None] * stride + columns[None, :] * stride_d
    tl.store(place, sums.to(target.dtype.element_ty), mask=own[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def join_segments(
    sums_of_parts, target, split_ptr, tile_lo, tile_hi, stride_b, stride_l, stride_h, stride_d,
    key_tiles, parts, factor,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the sums of the segments of a split tile, in order, and write them to dk or dv.

    Grid (parts, kv_heads, batch): the program of the first part of a tile adds them all.

    Args:
        sums_of_parts: float32 (batch, kv_heads, parts, BLOCK_N, BLOCK).
        target: (batch, tokens, kv_heads, WIDTH), any strides.
        split_ptr, tile_lo, tile_hi, factor: as in `grads`.
    """
    number, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_lane = (batch * tl.num_programs(1) + kv_head).to(tl.int64)
    split_ptr += kv_lane * (key_tiles + 1)
    tile = find_chunk(split_ptr, number, key_tiles)
    stop = tl.load(split_ptr + tile + 1)
    if (tl.load(split_ptr + tile) == number) & (number < stop):
        sums = tl.zeros((BLOCK_N, BLOCK), tl.float32)
        offsets, columns = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK)
        place = offsets[:, None] * BLOCK + columns[None, :]
        for part in range(number, stop):
            sums += tl.load(sums_of_parts + (kv_lane * parts + part) * BLOCK_N * BLOCK + place)
        positions = tl.load(tile_lo + tile) + offsets
        own = positions < tl.load(tile_hi + tile)
        target += batch.to(tl.int64) * stride_b + kv_head.to(tl.int64) * stride_h
        _store_rows(target, positions.to(tl.int64), stride_l, stride_d, own, sums * factor, WIDTH, BLOCK)
