"""Layouts as FlexAttention BlockMasks and back: the mask is the layout's, bit for bit, and so is the selection."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsemoc as moc
from sparsemoc.spec.blockmask import from_block_mask, to_block_mask
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import problems

torch = pytest.importorskip("torch", reason="the exchange with FlexAttention needs torch")
flex = pytest.importorskip("torch.nn.attention.flex_attention", reason="this torch has no FlexAttention")

FILM = moc.Stream.multishot(shots=3, frames=2, height=3, width=4, caption=5, prompt=7)


def layout_of(problem: Problem) -> moc.Layout:
    arrays = problem.arrays
    options = {name: value for name, value in problem.options().items() if name not in ("scale", "axes")}
    return moc.route(arrays.q, arrays.k, problem.spec, **options, backend="reference")


def mask_of(exported: Any) -> Any:
    """The mask that eager FlexAttention sees: mask_mod alone."""
    batch, heads, queries, keys = exported.shape
    return flex.create_mask(exported.mask_mod, batch, heads, queries, keys, device="cpu").numpy()


def blocks_of(exported: Any) -> tuple[Any, Any]:
    """The (partial, full) lists as bool (batch, heads, query blocks, key blocks)."""
    found = []
    for count, indices in (
        (exported.kv_num_blocks, exported.kv_indices),
        (exported.full_kv_num_blocks, exported.full_kv_indices),
    ):
        kept = np.zeros(indices.shape, bool)
        assert indices.dtype == count.dtype == torch.int32
        for place in np.ndindex(*count.shape):
            row = indices[place].tolist()
            assert sorted(row) == list(range(len(row)))  # padded to all key blocks: the compiled kernel asks for it
            listed = row[: int(count[place])]
            assert listed == sorted(listed)
            kept[(*place, listed)] = True
        found.append(kept)
    return found[0], found[1]


def check_exchange(layout: moc.Layout, block_size: int | tuple[int, int]) -> None:
    exported = layout.to_block_mask(block_size)
    mask = mask_of(exported)
    np.testing.assert_array_equal(mask, layout.dense_mask())
    # The lists are those that FlexAttention itself makes of the mask.
    queries, keys = (block_size, block_size) if isinstance(block_size, int) else block_size
    partial, full = flex._convert_mask_to_block_mask(
        torch.as_tensor(mask), Q_BLOCK_SIZE=queries, KV_BLOCK_SIZE=keys, separate_full_blocks=True
    )
    listed = blocks_of(exported)
    np.testing.assert_array_equal(listed[0], partial.numpy().astype(bool))
    np.testing.assert_array_equal(listed[1], full.numpy().astype(bool))
    again = moc.Layout.from_block_mask(exported, layout.plan, layout.key_lengths)
    assert again.selected.dtype == np.int32
    np.testing.assert_array_equal(again.selected, layout.selected)


@given(problem=problems(pairs=2**11), block_size=st.sampled_from((16, 128, (4, 7), (1, 3), (8, 2))))
@settings(max_examples=20)
def test_the_exchange_is_exact_for_drawn_problems(problem: Problem, block_size: Any) -> None:
    check_exchange(layout_of(problem), block_size)


SPECS = {
    "paper": moc.RoutingSpec(chunks=moc.Chunks(size=32), top_k=2),
    "causal": moc.RoutingSpec(chunks=moc.Chunks(size=32), top_k=2, causal="token", anchors=("chunk", moc.first(3))),
    "window": moc.RoutingSpec(chunks=moc.Chunks(size=20, tail="short"), top_k=3, anchors=(moc.window(9),)),
    "bare": moc.RoutingSpec(chunks=moc.Chunks(size=64), top_k=1, anchors=()),
    "blocks": moc.RoutingSpec(chunks=moc.Chunks(size=48), top_k=2, unit=moc.Block(5), anchors=(moc.window(30),)),
    "no routes": moc.RoutingSpec(chunks=moc.Chunks(size=32), top_k=0, causal="chunk"),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("tokens", [1, 127, 128, 130, 256])
@pytest.mark.parametrize("block_size", [128, (64, 32)])
def test_odd_lengths(name: str, tokens: int, block_size: Any) -> None:
    stream = moc.Stream((moc.Segment("video", tokens),))
    check_exchange(layout_of(Problem(SPECS[name], (stream,), heads=2, head_dim=4)), block_size)


def test_packed_samples_make_one_block_diagonal_mask() -> None:
    streams = (FILM, moc.Stream((moc.Segment("video", 9),)), FILM)
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=3, anchors=("text", moc.window(2)))
    layout = layout_of(
        Problem(spec, streams, heads=2, head_dim=4, packed=True, key_lengths=((7, 5, 20, 5), (4,), (9,)))
    )
    check_exchange(layout, 16)
    check_exchange(layout, (5, 7))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_eager_flex_attention_gives_the_same_output() -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=2, anchors=("caption", moc.window(2, "frame")))
    problem = Problem(spec, (FILM,), batch=2, heads=2, kv_heads=2, head_dim=16, v_head_dim=16)
    arrays, layout = problem.arrays, layout_of(problem)
    expected = moc.attend(arrays.q, arrays.k, arrays.v, layout, backend="reference")
    q, k, v = (torch.as_tensor(x).transpose(1, 2) for x in (arrays.q, arrays.k, arrays.v))
    out = flex.flex_attention(q, k, v, block_mask=layout.to_block_mask(16))
    np.testing.assert_allclose(out.transpose(1, 2).numpy(), expected, rtol=1e-5, atol=1e-5)


def film_layout(**changes: Any) -> moc.Layout:
    options: dict[str, Any] = {"chunks": moc.Chunks(size=6), "top_k": 2, "anchors": ("chunk",), **changes}
    return layout_of(Problem(moc.RoutingSpec(**options), (FILM,), batch=2, heads=2, head_dim=4))


def imported(mask: Any, plan: moc.Plan, **options: Any) -> moc.Layout:
    """Import a dense mask (batch, heads, queries, keys)."""
    table = torch.as_tensor(mask)
    made = flex.create_block_mask(
        lambda b, h, q, kv: table[b, h, q, kv], *mask.shape, device="cpu", BLOCK_SIZE=options.pop("block", 16)
    )
    return from_block_mask(made, plan, **options)


def test_a_mask_that_flex_attention_made_is_imported() -> None:
    layout = film_layout()
    mask = layout.dense_mask()
    np.testing.assert_array_equal(imported(mask, layout.plan).selected, layout.selected)
    np.testing.assert_array_equal(imported(mask, layout.plan, block=128).selected, layout.selected)


def test_a_mask_without_full_lists_or_mask_mod_is_imported() -> None:
    stream = moc.Stream((moc.Segment("video", 64),))
    plan = moc.plan(moc.RoutingSpec(chunks=moc.Chunks(size=16), anchors=("chunk",)), stream)
    indices = torch.tensor([[[[0, 1, 2, 3], [1, 0, 2, 3], [2, 1, 0, 3], [3, 2, 1, 0]]]], dtype=torch.int32)
    made = flex.BlockMask.from_kv_blocks(torch.tensor([[[1, 2, 2, 4]]], dtype=torch.int32), indices, BLOCK_SIZE=16)
    selected = from_block_mask(made, plan).selected
    assert selected[0, 0, ::16].tolist() == [[-1, -1, -1], [0, -1, -1], [1, -1, -1], [0, 1, 2]]


def mask_and_routed(layout: moc.Layout, place: tuple[int, int, int]) -> tuple[Any, int, slice]:
    """The layout's mask, and the first chunk that one query chose, with its keys."""
    chunk = int(layout.selected[place][0])
    bounds = layout.plan.samples[0].chunk_bounds
    return layout.dense_mask(), chunk, slice(int(bounds[chunk]), int(bounds[chunk + 1]))


def error_of(mask: Any, plan: moc.Plan, **options: Any) -> str:
    with pytest.raises(moc.LayoutError) as raised:
        imported(mask, plan, **options)
    return str(raised.value)


PLACE = (1, 0, 50)
START = (
    "from_block_mask: block_mask must be anchors and whole candidate chunks of the plan, got batch 1, head 0, "
    "query 50, which "
)
END = ". Hint: no layout of this plan can express it; change the spec."


def test_half_a_chunk_has_no_layout() -> None:
    layout = film_layout()
    mask, _, keys = mask_and_routed(layout, PLACE)
    mask[PLACE][keys.start] = False
    assert error_of(mask, layout.plan) == START + "or one of its block sees a part of a chunk" + END


def test_a_missing_anchor_has_no_layout() -> None:
    layout = film_layout()
    mask = layout.dense_mask()
    mask[(*PLACE, 50)] = False
    assert error_of(mask, layout.plan) == START + "does not see all of its anchors" + END


def test_more_chunks_than_slots_have_no_layout() -> None:
    layout = film_layout(top_k=1)
    mask, chunk, _ = mask_and_routed(layout, PLACE)
    plan = layout.plan.samples[0]
    other = next(c for c in plan.candidates(50) if c != chunk)
    mask[PLACE][plan.chunk_bounds[other] : plan.chunk_bounds[other + 1]] = True
    assert error_of(mask, layout.plan) == START + "sees more chunks than the 1 that the spec allows" + END


def test_a_chunk_that_is_no_candidate_has_no_layout() -> None:
    layout = film_layout(top_k=0)
    mask = layout.dense_mask()
    mask[PLACE][:6] = True  # text is not routable
    assert error_of(mask, layout.plan) == START + "sees keys of a chunk that is no candidate of it" + END


def test_a_padded_key_has_no_layout() -> None:
    layout = film_layout()
    lengths = np.array([[7, 5, 24, 5, 24, 5, 24], [7, 5, 24, 5, 24, 5, 20]], np.int32)
    with pytest.raises(moc.LayoutError, match="batch 1, head 0, query 0, which sees a padded key"):
        imported(layout.dense_mask(), layout.plan, key_lengths=lengths)


def test_a_key_of_another_packed_sample_has_no_layout() -> None:
    stream = moc.Stream((moc.Segment("video", 20),))
    problem = Problem(moc.RoutingSpec(chunks=moc.Chunks(size=4)), (stream, stream), heads=1, head_dim=4, packed=True)
    layout = layout_of(problem)
    mask = layout.dense_mask()
    mask[0, 0, 23, 3] = True
    assert "batch 0, head 0, query 23, which sees a key of another sample" in error_of(mask, layout.plan)


def test_members_of_a_block_must_agree() -> None:
    layout = film_layout(unit=moc.Block(3))
    mask, _, keys = mask_and_routed(layout, PLACE)
    mask[PLACE][keys] = False
    text = error_of(mask, layout.plan)
    assert "batch 1, head 0, query 50, which or one of its block sees a part of a chunk" in text


def test_errors_name_what_is_wrong() -> None:
    layout = film_layout()
    exported = to_block_mask(layout)
    with pytest.raises(moc.LayoutError, match=r"block_mask must be a BlockMask, got 3 \(int\)"):
        from_block_mask(3, layout.plan)
    with pytest.raises(moc.LayoutError, match=r"plan must be a Plan, got 'x' \(str\). Hint: sparsemoc.plan"):
        from_block_mask(exported, "x")  # type: ignore[arg-type]
    other = moc.plan(layout.plan.spec, moc.Stream((moc.Segment("video", 9),)))
    with pytest.raises(moc.LayoutError, match=r"\(batch, heads, 9, 9\), got \(2, 2, 94, 94\). queries and keys"):
        from_block_mask(exported, other)
    with pytest.raises(moc.LayoutError, match="key_lengths must be int32"):
        from_block_mask(exported, layout.plan, np.zeros((1, 7), np.int32))
    for wrong in (0, (128, 0), "128", (1, 2, 3), 1.5):
        with pytest.raises(moc.SpecError, match="to_block_mask: block_size must be a whole number >= 1, got "):
            to_block_mask(layout, wrong)  # type: ignore[arg-type]


def test_without_torch_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = film_layout()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(moc.UnsupportedError, match=r'to_block_mask: needs torch .* pip install "sparsemoc\[torch\]"'):
        layout.to_block_mask()
    with pytest.raises(moc.UnsupportedError, match="from_block_mask: needs torch"):
        moc.Layout.from_block_mask(None, layout.plan)
