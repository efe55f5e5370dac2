"""Pairs and useful operations of a layout whose routes lie on a device: few numbers cross to the host."""

from __future__ import annotations

from typing import Any

import sparsemoc as moc
from bench.gpu.settings import Setting

#: Matrix products of a pair: scores and values; and in the backward five, of which one repeats the scores.
FORWARD, BACKWARD = 2, 5


def anchor_pairs(plan: moc.Plan) -> int:
    """Return the (query, key) pairs of one head that the anchors and the dense queries of a plan give."""
    return sum(sample.anchor_rectangles.pairs(sample.reach, sample.token_causal) for sample in plan.samples)


def pairs(layout: moc.Layout) -> int:
    """Return `Layout.pairs()`, counted on the device where no route is cut by an anchor; without padding."""
    import torch

    plan = layout.plan
    if layout.key_lengths is not None or plan.packed or plan.samples[0].splits_chunks:
        return layout.pairs()
    # The entry behind the last chunk is what -1, no chunk, finds.
    lengths = torch.tensor([*plan.samples[0].chunk_lengths.tolist(), 0], device=layout.selected.device)
    routed = sum(int(lengths[head.long()].sum()) for row in layout.selected for head in row)
    return routed + anchor_pairs(plan) * layout.batch * layout.heads


def dense_pairs(setting: Setting) -> int:
    """Return the pairs of dense attention over the same tokens: all, or half of them where it is causal."""
    tokens = setting.tokens
    return setting.heads * (tokens * (tokens + 1) // 2 if setting.causal else tokens * tokens)


def flops(count: int, head_dim: int, products: int) -> int:
    """Return the useful operations of so many pairs: a multiplication and an addition for each of head_dim."""
    return 2 * count * head_dim * products


def random_layout(setting: Setting, setup: Any) -> moc.Layout:
    """Return a layout of random routes: as many different chunks as the spec's top_k for every query and head."""
    import torch

    plan = moc.plan(setting.spec)
    random = torch.Generator(setup.device).manual_seed(1)
    shape = (1, setting.heads, setting.tokens, plan.slots)
    # Sorted draws with repetition, spread apart: different and ascending, with nothing of (queries, chunks) in memory.
    drawn = torch.randint(plan.chunks - plan.slots + 1, shape, generator=random, device=setup.device)
    spread = drawn.sort(dim=-1).values + torch.arange(plan.slots, device=setup.device)
    return moc.Layout(spread.to(torch.int32), plan)
