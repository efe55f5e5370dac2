"""Partial outputs merged by their lse, in a fixed order: the anchors' first, then the routes by slot."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _grow(top, total, lse):
    """Take one partial lse (rows,), base 2, -inf for none, into a running sum of exponentials `total` under `top`."""
    new = tl.maximum(top, lse)
    base = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp2(top - base) + tl.exp2(lse - base)


@triton.jit
def _add(acc, out, target, lse, base, V_HEAD_DIM: tl.constexpr, BLOCK_DV: tl.constexpr):
    """Add the partial outputs at places `target`, by weights exp2(lse - base); none where lse is -inf."""
    columns = tl.arange(0, BLOCK_DV)
    there = (lse != float("-inf"))[:, None] & (columns < V_HEAD_DIM)[None, :]
    part = tl.load(out + target[:, None] * V_HEAD_DIM + columns[None, :], mask=there, other=0.0).to(tl.float32)
    return acc + tl.where(there, part * tl.exp2(lse - base)[:, None], 0.0)


@triton.jit(
    do_not_specialize=(
        "stride_sb", "stride_sh", "stride_sl", "stride_lb", "stride_lh", "heads", "rows_all", "anchor_places", "slots",
    )
)  # fmt: skip
def merge(
    tiles, parts, anchor_out, anchor_lse, routed_out, routed_lse, selected, out, lse,
    stride_ob, stride_ol, stride_oh, stride_od, stride_sb, stride_sh, stride_sl, stride_lb, stride_lh,
    heads, rows_all, anchor_places, slots,
    V_HEAD_DIM: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Merge the partial outputs of BLOCK_M rows of a tile: out = sum_p 2^(lse_p - lse) out_p, lse = log2 sum_p 2^lse_p.

    Grid (tiles * TILE / BLOCK_M, heads, batch).

    Args:
        tiles: int32 (tiles, 4): first row, rows, first part, end of parts.
        parts: int32 (parts,): the place of row r in a part is parts[p] + r.
        anchor_out, anchor_lse: partial outputs of the anchors, (batch, heads, anchor_places[, v_head_dim]).
        routed_out, routed_lse: those of the routes, (batch, heads, rows, slots[, v_head_dim]).
        selected: int32 (batch, heads, rows, slots), the last axis dense; only slots >= 0 are read of the routes.
        out: (batch, rows, heads, v_head_dim), any strides; 0 without keys.
        lse: float32 (batch, heads, rows), the last axis dense, natural log; -inf without keys.
    """
    pieces: tl.constexpr = TILE // BLOCK_M
    number, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles += number // pieces * 4
    first = number % pieces * BLOCK_M
    count = tl.load(tiles + 1)
    if first < count:
        rows = tl.load(tiles) + first + tl.arange(0, BLOCK_M)
        own = first + tl.arange(0, BLOCK_M) < count
        part_lo, part_hi = tl.load(tiles + 2), tl.load(tiles + 3)
        lane = (batch * heads + head).to(tl.int64)
        choices = selected + batch.to(tl.int64) * stride_sb + head.to(tl.int64) * stride_sh
        choices += rows.to(tl.int64) * stride_sl
        anchored = lane * anchor_places + rows
        routed = (lane * rows_all + rows) * slots
        top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        for part in range(part_lo, part_hi):
            logs = tl.load(anchor_lse + anchored + tl.load(parts + part), mask=own, other=float("-inf"))
            top, total = _grow(top, total, logs)
        for slot in range(slots):
            taken = own & (tl.load(choices + slot, mask=own, other=-1) >= 0)
            logs = tl.load(routed_lse + routed + slot, mask=taken, other=float("-inf"))
            top, total = _grow(top, total, logs)
        base = tl.where(top == float("-inf"), 0.0, top)
        acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
        for part in range(part_lo, part_hi):
            target = anchored + tl.load(parts + part)
            logs = tl.load(anchor_lse + target, mask=own, other=float("-inf"))
            acc = _add(acc, anchor_out, target, logs, base, V_HEAD_DIM, BLOCK_DV)
        for slot in range(slots):
            taken = own & (tl.load(choices + slot, mask=own, other=-1) >= 0)
            logs = tl.load(routed_lse + routed + slot, mask=taken, other=float("-inf"))
            acc = _add(acc, routed_out, routed + slot, logs, base, V_HEAD_DIM, BLOCK_DV)
        empty = total == 0.0
        acc = acc / tl.where(empty, 1.0, total)[:, None]
        columns = tl.arange(0, BLOCK_DV)
        out += batch.to(tl.int64) * stride_ob + head.to(tl.int64) * stride_oh
        places = out + (rows.to(tl.int64) * stride_ol)[:, None] + columns[None, :] * stride_od
        tl.store(places, acc.to(out.dtype.element_ty), mask=own[:, None] & (columns < V_HEAD_DIM)[None, :])
        natural = (base + tl.log2(total)) * 0.6931471805599453
        lse += batch.to(tl.int64) * stride_lb + head.to(tl.int64) * stride_lh
        tl.store(lse + rows, tl.where(empty, float("-inf"), natural), mask=own)
