"""The exchange with FlexAttention: a Layout as a BlockMask with an exact mask_mod, and back. Needs torch.

Compiled kernels visit the listed blocks and evaluate mask_mod in the partial ones. Eager FlexAttention evaluates
mask_mod alone and ignores the lists, so each of the two must say everything.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec import checks
from sparsemoc.spec.errors import LayoutError, UnsupportedError, describe
from sparsemoc.spec.host import is_cupy
from sparsemoc.spec.masks import layout_of
from sparsemoc.spec.plan import Plan, Sample
from sparsemoc.spec.report import new_keys, routes

if TYPE_CHECKING:
    from sparsemoc.spec.layout import Layout

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def to_block_mask(layout: Layout, block_size: int | tuple[int, int] = 128, device: Any = None) -> Any:
    """Return a layout as a torch.nn.attention.flex_attention.BlockMask (batch, heads, queries, keys).

    Blocks whose pairs are all allowed stand in the full lists, other blocks with an allowed pair in the partial ones.
    A packed layout gives one block-diagonal mask over its token axis.

    Args:
        layout: a valid layout.
        block_size: queries and keys of a block, one number or (queries, keys).
        device: where the mask lives; when None, where the layout does.

    Raises:
        UnsupportedError: torch is not installed.
        SpecError: a block size below 1.
    """
    torch, flex = _torch("to_block_mask")
    block = _checked_block(block_size)
    device, layout = _device_of(layout.selected) if device is None else device, layout.on_host()
    counts = _allowed_pairs(layout, block)
    full = counts == block[0] * block[1]  # a block that sticks out of the mask is partial, as in create_block_mask
    lists = [torch.as_tensor(part, device=device) for kept in ((counts > 0) & ~full, full) for part in _ordered(kept)]
    tables = [torch.as_tensor(table, device=device) for table in _tables(layout)]
    return flex.BlockMask.from_kv_blocks(
        *lists, BLOCK_SIZE=block, mask_mod=_mask_mod(*tables), seq_lengths=(layout.plan.q_tokens, layout.plan.k_tokens)
    )


def _torch(function: str) -> tuple[ModuleType, ModuleType]:
    try:
        import torch
        from torch.nn.attention import flex_attention
    except ImportError as error:
        raise UnsupportedError(
            f'{function}: needs torch with FlexAttention, got {error}. Hint: pip install "sparsemoc[torch]".'
        ) from None
    return torch, flex_attention


def _device_of(array: Any) -> Any:
    """Return the torch device on which an array lies."""
    return f"cuda:{array.device.id}" if is_cupy(array) else array.device


def _checked_block(block_size: Any) -> tuple[int, int]:
    sizes = block_size if checks.is_items(block_size) and len(block_size) == 2 else (block_size, block_size)
    hint = "Hint: 128, or (queries, keys)."
    queries, keys = (checks.whole(n, "to_block_mask: block_size", least=1, hint=hint) for n in sizes)
    return queries, keys


class _Tables(NamedTuple):
    """What mask_mod reads. Keys fall into parts that no anchor range cuts; queries with one anchor set are a class."""

    selected: NDArray[np.int32]  # (batch, heads, queries, slots), chunk numbers running on through packed samples
    chunk_of_key: NDArray[np.int32]  # (batch, keys), -1 for a padded key
    part_of_key: NDArray[np.int32]  # (batch, keys)
    class_of_query: NDArray[np.int32]  # (batch, queries)
    anchored: Bools  # (classes, parts)
    near: NDArray[np.int32]  # (batch, queries, 2): first and stop of the token window
    last: NDArray[np.int32]  # (batch, queries): the latest key that causality allows, -1 for a padded query


def _mask_mod(
    selected: Any, chunk_of_key: Any, part_of_key: Any, class_of_query: Any, anchored: Any, near: Any, last: Any
) -> Any:
    def mask_mod(b: Any, h: Any, q: Any, kv: Any) -> Any:
        chunk = chunk_of_key[b, kv]
        seen = anchored[class_of_query[b, q], part_of_key[b, kv]]
        seen = seen | ((kv >= near[b, q, 0]) & (kv < near[b, q, 1]))
        for slot in range(selected.shape[3]):  # unrolled: compiled kernels take pointwise code only, no reductions
            seen = seen | (selected[b, h, q, slot] == chunk)
        return seen & (chunk >= 0) & (kv <= last[b, q])

    return mask_mod


def _tables(layout: Layout) -> _Tables:
    queries, keys = (layout.batch, layout.plan.q_tokens), (layout.batch, layout.plan.k_tokens)
    chunk_of_key, part_of_key = np.full(keys, -1, np.int32), np.zeros(keys, np.int32)
    class_of_query, near = np.zeros(queries, np.int32), np.zeros((*queries, 2), np.int32)
    last = np.full(queries, -1, np.int32)
    anchor_sets: dict[tuple[tuple[int, int], ...], int] = {(): 0}
    chunks, cuts = [0] * layout.batch, {0}
    for sample in layout.samples():
        plan, row = sample.plan, sample.row
        for lo, hi in zip(plan.chunk_bounds, plan.chunk_stop, strict=False):
            chunk_of_key[row, sample.k_row + lo : sample.k_row + hi] = chunks[row]
            chunks[row] += 1
        for run in range(len(plan.run_lo)):
            ranges = tuple((sample.k_row + lo, sample.k_row + hi) for lo, hi in plan.static_ranges(run))
            cuts.update(cut for span in ranges for cut in span)
            own = np.arange(plan.run_lo[run], plan.run_hi[run]) + sample.k_row  # as a key row
            rows = own - sample.k_row + sample.q_row - plan.q_start
            class_of_query[row, rows] = anchor_sets.setdefault(ranges, len(anchor_sets))
            if plan.reach >= 0:
                near[row, rows, 0] = np.maximum(own - plan.reach, sample.k_row)
                near[row, rows, 1] = np.minimum(own + plan.reach + 1, sample.k_row + plan.k_tokens)
            last[row, rows] = own if plan.token_causal else keys[1] - 1
    ordered = np.array(sorted(cuts))
    part_of_key[:] = np.searchsorted(ordered, np.arange(keys[1]), side="right") - 1
    anchored = np.zeros((len(anchor_sets), len(ordered)), bool)
    for ranges, number in anchor_sets.items():
        for lo, hi in ranges:
            anchored[number, np.searchsorted(ordered, lo) : np.searchsorted(ordered, hi)] = True
    return _Tables(layout.run_on()[0], chunk_of_key, part_of_key, class_of_query, anchored, near, last)


def _allowed_pairs(layout: Layout, block: tuple[int, int]) -> Ints:
    """Return the allowed pairs of each block, (batch, heads, query blocks, key blocks), without a dense mask."""
    blocks = (-(-layout.plan.q_tokens // block[0]), -(-layout.plan.k_tokens // block[1]))
    counts = np.zeros((layout.batch, layout.heads, *blocks), np.int64)
    for sample in layout.samples():
        _add_anchors(counts[sample.row], sample, block)
        _add_routes(counts[sample.row], sample, layout.rows(sample), block)
    return counts


def _add_anchors(counts: Ints, sample: Sample, block: tuple[int, int]) -> None:
    plan, rows = sample.plan, sample.plan.anchor_rectangles
    shift = sample.q_row - plan.q_start
    for q_lo, q_hi, k_lo, k_hi, banded in zip(
        rows.q_lo.tolist(), rows.q_hi.tolist(), rows.k_lo.tolist(), rows.k_hi.tolist(), rows.banded, strict=True
    ):
        columns = slice((sample.k_row + k_lo) // block[1], (sample.k_row + k_hi - 1) // block[1] + 1)
        edges = np.arange(columns.start, columns.stop + 1) * block[1] - sample.k_row
        for number in range((q_lo + shift) // block[0], (q_hi + shift - 1) // block[0] + 1):
            start = number * block[0] - shift
            query = np.arange(max(q_lo, start), min(q_hi, start + block[0]))[:, None]
            first = np.maximum(k_lo, query - plan.reach) if banded else np.full_like(query, k_lo)
            stop = np.minimum(k_hi, query + plan.reach + 1) if banded else np.full_like(query, k_hi)
            stop = np.maximum(np.minimum(stop, query + 1) if plan.token_causal else stop, first)
            counts[:, number, columns] += np.diff(np.clip(edges, first, stop), axis=1).sum(axis=0)


def _add_routes(counts: Ints, sample: Sample, selected: NDArray[np.int32], block: tuple[int, int]) -> None:
    plan = sample.plan
    for run, head, query, chunk in routes(plan, selected):
        lo, hi = plan.chunk_bounds[chunk], plan.chunk_stop[chunk]
        first = (sample.k_row + lo) // block[1]
        touched = (sample.k_row + hi - 1) // block[1] - first + 1
        route = np.repeat(np.arange(len(chunk)), touched)
        column = first[route] + np.arange(len(route)) - np.repeat(np.cumsum(touched) - touched, touched)
        edge = column * block[1] - sample.k_row
        pairs = new_keys(plan, run, query[route], np.maximum(lo[route], edge), np.minimum(hi[route], edge + block[1]))
        np.add.at(counts, (head[route], (query[route] - plan.q_start + sample.q_row) // block[0], column), pairs)


def _ordered(kept: Bools) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return how many blocks of each row are kept, and the row's blocks, those kept first, each in order."""
    return kept.sum(-1, dtype=np.int32), np.argsort(~kept, axis=-1, kind="stable").astype(np.int32)


def from_block_mask(block_mask: Any, plan: Plan, key_lengths: NDArray[np.int32] | None = None) -> Layout:
    """Return the layout of a plan whose dense mask is the BlockMask's.

    Args:
        block_mask: a BlockMask (batch, heads, queries, keys); its partial blocks are evaluated by its mask_mod.
        plan: what the layout is made for.
        key_lengths: int32 (batch, segments), packed (samples, most segments), or None.

    Returns:
        The Layout, with NumPy arrays.

    Raises:
        UnsupportedError: torch is not installed.
        LayoutError: a size that is not the plan's, or a query whose keys are not its anchors and whole candidate
            chunks; the text names the first one.
    """
    _, flex = _torch("from_block_mask")
    if not isinstance(block_mask, flex.BlockMask):
        raise LayoutError(f"from_block_mask: block_mask must be a BlockMask, got {describe(block_mask)}.")
    if not isinstance(plan, Plan):
        raise LayoutError(f"from_block_mask: plan must be a Plan, got {describe(plan)}. Hint: sparsemoc.plan(spec).")
    shape, wanted = tuple(block_mask.shape), (plan.q_tokens, plan.k_tokens)
    if len(shape) != 4 or shape[2:] != wanted:
        raise LayoutError(
            f"from_block_mask: block_mask must have shape (batch, heads, queries, keys) = (batch, heads, {wanted[0]}, "
            f"{wanted[1]}), got {shape}. queries and keys come from the plan."
        )
    lists = [(_numpy(block_mask.kv_num_blocks), _numpy(block_mask.kv_indices))]
    if block_mask.full_kv_num_blocks is not None:
        lists.append((_numpy(block_mask.full_kv_num_blocks), _numpy(block_mask.full_kv_indices)))

    def read(batch: int, head: int, lo: int, hi: int) -> Bools:
        seen = np.zeros((hi - lo, plan.k_tokens), bool)
        size, width = block_mask.BLOCK_SIZE
        for number in range(lo // size, (hi - 1) // size + 1):
            rows = range(max(lo, number * size), min(hi, (number + 1) * size))
            part = seen[rows.start - lo : rows.stop - lo]
            keys = [_keys(indices[batch, head, number, : num[batch, head, number]], width) for num, indices in lists]
            for full in keys[1:]:
                part[:, full[full < plan.k_tokens]] = True
            partial = keys[0][keys[0] < plan.k_tokens]
            part[:, partial] |= _evaluated(block_mask, flex.create_mask, (batch, head), rows, partial)
        return seen

    return layout_of(read, (shape[0], shape[1]), plan, key_lengths)


def _numpy(tensor: Any) -> NDArray[np.int64]:
    array: NDArray[np.int64] = tensor.cpu().numpy().astype(np.int64)
    return array


def _keys(blocks: Ints, width: int) -> Ints:
    return (blocks[:, None] * width + np.arange(width)).ravel()


def _evaluated(block_mask: Any, create_mask: Any, place: tuple[int, int], rows: range, keys: Ints) -> Bools:
    """Return the mask_mod of a batch row and head at some queries and keys."""
    device = block_mask.kv_indices.device
    key = block_mask.kv_indices.new_tensor(keys)

    def moved(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return block_mask.mask_mod(b + place[0], h + place[1], q + rows.start, key[kv])

    if not len(keys):
        return np.zeros((len(rows), 0), bool)
    mask: Bools = create_mask(moved, 1, 1, len(rows), len(keys), device=device)[0, 0].cpu().numpy()
    return mask
