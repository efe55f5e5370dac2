"""Modules and functions compile whole (fullgraph), and give what they give uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

import sparsemoc as moc

torch = pytest.importorskip("torch", reason="the compiler is torch's")
moc_torch: Any = import_module("sparsemoc.torch")

# Prompt 3, caption 2, video 12, caption 2, video 12: 31 tokens.
STREAM = moc.Stream.multishot(shots=2, frames=2, height=2, width=3, caption=2, prompt=3)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=4), top_k=2, anchors=("caption", "chunk"))
DROPOUT = replace(SPEC, dropout=moc.RouteDropout(off=1.0, into=1.0))


def made(spec: moc.RoutingSpec = SPEC) -> Any:
    torch.manual_seed(0)
    return moc_torch.MoCAttention(24, 4, spec, kv_heads=2, qk_norm="head")


def test_a_module_for_any_batch(counted: Any) -> None:
    layer, graphs = made(), set()
    compiled = torch.compile(layer, fullgraph=True, backend=counted, dynamic=True)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 31, 24)
        torch.testing.assert_close(compiled(x), layer(x))
        graphs.add(counted.graphs)
    assert len(graphs) == 1  # the number, since torch makes the first one twice for the sake of its floats


def test_a_schedule_recompiles_for_new_specs_alone(counted: Any) -> None:
    layer, x = made(), torch.randn(2, 31, 24)
    compiled = torch.compile(layer, fullgraph=True, backend=counted)
    for spec, graphs in ((SPEC, 1), (replace(SPEC, top_k=1), 2), (replace(SPEC, top_k=2), 2)):
        layer.spec = spec
        torch.testing.assert_close(compiled(x), layer(x))
        assert counted.graphs == graphs


def test_a_new_seed_recompiles_nothing(counted: Any) -> None:
    layer, x = made(DROPOUT), torch.randn(2, 31, 24)
    compiled = torch.compile(layer, fullgraph=True, backend=counted)
    outs = []
    for seed in range(3):
        torch.manual_seed(seed)
        outs.append(compiled(x))
        torch.manual_seed(seed)
        torch.testing.assert_close(outs[-1], layer(x))
    assert not torch.equal(outs[0], outs[1])
    assert counted.graphs == 1


def test_a_layout_comes_out_of_a_graph(counted: Any) -> None:
    layer, x = made(), torch.randn(2, 31, 24)
    lengths = torch.tensor([[3, 2, 12, 2, 12], [1, 0, 7, 2, 5]])
    wanted, expected = layer(x, key_lengths=lengths, return_layout=True)
    found, layout = torch.compile(layer, fullgraph=True, backend=counted)(x, key_lengths=lengths, return_layout=True)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(layout.selected, expected.selected)
    assert layout.plan == expected.plan


def gradients(layer: Any, run: Callable[[Any], Any]) -> list[Any]:
    layer.zero_grad()
    torch.manual_seed(1)
    x = torch.linspace(-1, 1, 2 * 31 * 24).sin().reshape(2, 31, 24).requires_grad_()
    run(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_with_route_dropout(counted: Any, checkpointed: bool) -> None:
    layer = made(DROPOUT)

    def run(x: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)

    wanted = gradients(layer, layer)
    found = gradients(layer, torch.compile(run, fullgraph=True, backend=counted))
    for grad, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(grad, expected)


def test_behind_the_signature_of_sdpa(counted: Any) -> None:
    attend = moc_torch.sdpa_like(SPEC)
    compiled = torch.compile(attend, fullgraph=True, backend=counted)
    for batch in (2, 3, 4):
        q, k, v = torch.randn(3, batch, 4, 31, 8)
        torch.testing.assert_close(compiled(q, k, v, scale=0.5), attend(q, k, v, scale=0.5))
    assert counted.graphs == 2  # the first batch, and any other
