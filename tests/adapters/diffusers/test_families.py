"""Every family's real class: the stream, where tokens stand, dense equality, and equality with the oracle."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import oracle
from tests.adapters.diffusers.conftest import Calls

torch = pytest.importorskip("torch", reason="the adapter needs torch")
pytest.importorskip("diffusers", reason="the adapter needs diffusers")
enable: Any = import_module("sparsemoc.diffusers").enable
BATCH: int = import_module("tests.adapters.diffusers.models").BATCH

#: Chunks of 6 in a frame of 10: sizes that nothing is a multiple of. Two routes of six chunks.
SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=6, align="frame"), top_k=2, anchors=("text", "chunk"))
EVERY = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=64)


def run(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def gradients(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    out = model(**inputs, return_dict=False)[0]
    out.square().mean().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), grads


def same(found: tuple[Any, dict[str, Any]], expected: tuple[Any, dict[str, Any]]) -> None:
    """Check outputs and the gradients of all parameters: to rounding, relative to the largest of each."""
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=2e-5 * expected[0].abs().max())
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        # A key's bias moves all logits of a query alike: its gradient is rounding alone.
        torch.testing.assert_close(found[1][name], grad, rtol=1e-3, atol=1e-4 * max(grad.abs().max(), 1e-4), msg=name)


def test_stream_is_the_segments_written_by_hand(case: Any, calls: Calls) -> None:
    model = case.build()
    with enable(model, SPEC) as handle:
        assert handle.layers == case.layers
        run(model, case.inputs())
        assert handle.stream == case.stream
    assert [call["stream"] for call in calls] == [case.stream] * len(case.layers)
    assert {tuple(call["q"].shape[:2]) for call in calls} == {(BATCH, case.stream.tokens)}
    for call in calls:
        lengths = call["key_lengths"]
        assert (lengths if lengths is None else tuple(map(tuple, lengths.tolist()))) == case.lengths


def first_layer(model: Any, inputs: dict[str, Any], calls: Calls) -> tuple[Any, Any]:
    calls.clear()
    run(model, inputs)
    return calls[0]["k"], calls[0]["v"]


def rows_that_differ(model: Any, before: dict[str, Any], after: dict[str, Any], calls: Calls) -> list[list[int]]:
    """Return, for k and v of the first layer, which tokens of the second sample differ."""
    pairs = zip(first_layer(model, before, calls), first_layer(model, after, calls), strict=True)
    return [torch.nonzero((x != y)[1].flatten(1).any(dim=1)).flatten().tolist() for x, y in pairs]


def test_a_latent_frame_is_those_rows_of_k_and_v(case: Any, calls: Calls) -> None:
    frame = 2
    model = case.build()
    inputs = case.inputs()
    axis, count = case.frames
    changed = inputs["hidden_states"].clone()
    changed.narrow(axis, frame * count, count).add_(1.0)
    start = 7 if case.stream.segments[0].kind == "text" else 0
    expected = list(range(start + frame * 10, start + frame * 10 + 10))
    with enable(model, SPEC):
        found = rows_that_differ(model, inputs, {**inputs, "hidden_states": changed}, calls)
    assert found == [expected, expected]


def test_text_is_those_rows_of_k_and_v(case: Any, calls: Calls) -> None:
    model = case.build()
    if hasattr(model, "time_embed") and "Mochi" in type(model).__name__:  # its time embedding takes the text in, too
        model.time_embed.register_forward_hook(lambda module, args, out: (torch.ones_like(out[0]), out[1]))
    inputs = case.inputs()
    changed = {name: inputs[name] * 2 + 1 for name in case.texts}
    segments = case.stream.segments
    text = next((i for i, segment in enumerate(segments) if segment.kind == "text"), None)
    with enable(model, SPEC):
        found = rows_that_differ(model, inputs, {**inputs, **changed}, calls)
    if text is None:
        assert found == [[], []]
        return
    start = 30 if text == 1 else 0
    valid = segments[text].tokens if case.lengths is None else case.lengths[1][text]
    expected = list(range(start, start + valid))
    for rows in found:
        assert rows[:valid] == expected
        assert all(start <= row < start + segments[text].tokens for row in rows)


def test_every_chunk_selected_is_dense_to_rounding(case: Any) -> None:
    model = case.build()
    dense = gradients(model, case.inputs())
    with enable(model, EVERY):
        same(gradients(model, case.inputs()), dense)


def masked(case: Any, spec: moc.RoutingSpec) -> Any:
    """Return attention by a dense softmax under the oracle's mask, from the stream written by hand, in torch."""

    def attention(q: Any, k: Any, v: Any, *ignored: Any, **options: Any) -> Any:
        answer = oracle.run(
            q.detach().numpy(),
            k.detach().numpy(),
            v.detach().numpy(),
            spec,
            stream=case.stream,
            key_lengths=case.lengths,
        )
        mask = torch.from_numpy(np.stack(answer.mask))
        logits = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
        weights = torch.where(mask, logits, -1e30).softmax(dim=-1) * mask
        return torch.einsum("bhij,bjhd->bihd", weights, v)

    return attention


def test_forward_and_backward_are_those_of_the_oracle(case: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    model = case.build()
    dense = run(model, case.inputs())
    with enable(model, SPEC):
        found = gradients(model, case.inputs())
        for call in calls:
            q, k, v = (call[name].detach().numpy() for name in ("q", "k", "v"))
            answer = oracle.run(q, k, v, SPEC, stream=case.stream, key_lengths=case.lengths)
            np.testing.assert_allclose(call["answer"].detach().numpy(), answer.out, rtol=0, atol=1e-5)
        monkeypatch.setattr("sparsemoc.api.attention", masked(case, SPEC))
        same(found, gradients(model, case.inputs()))
    assert len(calls) == len(case.layers)
    assert (found[0] - dense).abs().max() > 1e-3 * dense.abs().max()


def test_remove_restores_dense_bit_for_bit(case: Any) -> None:
    model = case.build()
    dense = run(model, case.inputs())
    before = [(name, type(m.processor)) for name, m in model.named_modules() if hasattr(m, "processor")]
    handle = enable(model, SPEC)
    assert not torch.equal(run(model, case.inputs()), dense)
    handle.remove()
    handle.remove()
    assert torch.equal(run(model, case.inputs()), dense)
    assert [(name, type(m.processor)) for name, m in model.named_modules() if hasattr(m, "processor")] == before
    assert not model._forward_pre_hooks
    assert all(
        "_attention_backend" not in vars(m.processor) for _, m in model.named_modules() if hasattr(m, "processor")
    )
