"""The rules of a selection, checked on its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.errors import LayoutError
from sparsemoc.spec.plan import Sample

if TYPE_CHECKING:
    from sparsemoc.spec.layout import Layout


def validate_sample(layout: Layout, sample: Sample) -> None:
    """Check the selection of one sample; raise LayoutError with the first place that breaks a rule."""
    selected = layout.rows(sample)
    plan = sample.plan
    check_numbers(selected, sample)
    later, before = selected[..., 1:], selected[..., :-1]
    wrong = np.zeros(selected.shape, bool)
    wrong[..., 1:] = (later >= 0) & (later <= before)
    _refuse(wrong, selected, sample, "must be strictly ascending")
    wrong[..., 1:] = (later >= 0) & (before < 0)
    _refuse(wrong, selected, sample, "must hold -1 only after its chunks")
    top_k = np.array(plan.spec.top_k_of(layout.heads))
    added = plan.spec.dropout.into_max if plan.spec.dropout is not None else 0
    over = (selected >= 0).sum(-1) > (top_k + added)[:, None]
    _refuse(over[..., None] & (selected >= 0), selected, sample, "must hold at most top_k (+ into_max) chunks")
    _refuse(~_candidates(selected, sample), selected, sample, "must hold candidates of its query only")
    _check_blocks(selected, sample)


def check_numbers(selected: NDArray[np.int32], sample: Sample) -> None:
    """Check that a selection names chunks that there are: what kernels on the host would read beyond.

    Args:
        selected: `Layout.rows` of the sample.
        sample: its place and plan.

    Raises:
        LayoutError: a number beyond the chunks, or below -1.
    """
    chunks = sample.plan.chunks
    if selected.size and (int(selected.max()) >= chunks or int(selected.min()) < -1):
        _refuse(selected >= chunks, selected, sample, f"must hold chunk numbers < {chunks}")
        _refuse(selected < -1, selected, sample, "must hold chunk numbers, or -1 for none")


def _candidates(selected: NDArray[np.int32], sample: Sample) -> NDArray[np.bool_]:
    """Return whether each entry is -1 or a candidate of its query."""
    plan = sample.plan
    groups = len(plan.group_lo)
    is_candidate = np.zeros((groups + 1, plan.chunks), bool)  # the last row is that of queries without candidates
    for group in range(groups):
        for at in range(plan.candidate_ptr[group], plan.candidate_ptr[group + 1]):
            is_candidate[group, plan.candidate_lo[at] : plan.candidate_hi[at]] = True
    group_of_unit = np.full(len(plan.unit_lo), groups)
    for group, (lo, hi) in enumerate(zip(plan.group_lo, plan.group_hi, strict=True)):
        group_of_unit[lo:hi] = group
    group_of_query = np.full(plan.q_tokens, groups)
    for group, lo, hi in zip(group_of_unit, plan.unit_lo - plan.q_start, plan.unit_hi - plan.q_start, strict=True):
        group_of_query[lo:hi] = group
    allowed: NDArray[np.bool_] = (selected < 0) | is_candidate[group_of_query[None, :, None], selected]
    return allowed


def _check_blocks(selected: NDArray[np.int32], sample: Sample) -> None:
    plan = sample.plan
    differs = np.zeros(selected.shape, bool)
    for lo, hi in zip(plan.unit_lo - plan.q_start, plan.unit_hi - plan.q_start, strict=True):
        if hi - lo > 1:
            differs[:, lo:hi] = selected[:, lo:hi] != selected[:, lo : lo + 1]
    _refuse(differs, selected, sample, "must be the same for all members of a block")


def _refuse(wrong: NDArray[np.bool_], selected: NDArray[np.int32], sample: Sample, rule: str) -> None:
    if wrong.any():
        head, query, _ = (int(n) for n in np.argwhere(wrong)[0])
        row = selected[head, query].tolist()
        raise LayoutError(
            f"Layout: selected[{sample.row}, {head}, {sample.q_row + query}] {rule}, got {row}. "
            f"{int(wrong.any(-1).sum())} rows break this rule. Hint: make layouts with sparsemoc.route."
        )
