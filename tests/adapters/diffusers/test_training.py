"""Training: checkpoints, adapters, route dropout, and the monitor."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

import sparsemoc as moc
from tests.adapters.diffusers.conftest import Calls

torch = pytest.importorskip("torch", reason="the adapter needs torch")
pytest.importorskip("diffusers", reason="the adapter needs diffusers")
enable: Any = import_module("sparsemoc.diffusers").enable
CASES: Any = import_module("tests.adapters.diffusers.models").CASES

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=6, align="frame"), top_k=2)
DROPOUT = replace(SPEC, top_k=3, dropout=moc.RouteDropout(off=1.0, into=1.0))


def gradients(model: Any, name: str = "wan", **changed: Any) -> dict[str, Any]:
    model.zero_grad()
    loss = model(**{**CASES[name].inputs(), **changed}, return_dict=False)[0].square().mean()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5 * max(grad.abs().max(), 1e-4), msg=name)


@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_checkpointing_gives_the_same_gradients_with_route_dropout(name: str, calls: Calls) -> None:
    model = CASES[name].build().train()
    with enable(model, DROPOUT):
        torch.manual_seed(1)
        expected = gradients(model, name)
        model.enable_gradient_checkpointing()
        torch.manual_seed(1)
        same(gradients(model, name), expected)
        torch.manual_seed(2)
        other = gradients(model, name)
    assert len(calls) == 2 + 4 + 4
    assert all(call["training"] for call in calls)
    assert any(not torch.equal(other[name], grad) for name, grad in expected.items())


def test_a_recomputed_block_sees_the_grid_of_its_own_pass() -> None:
    model = CASES["wan"].build().train()
    other = torch.randn(2, 4, 5, 4, 6)  # as many tokens
    inputs = CASES["wan"].inputs()
    with enable(model, SPEC) as handle:
        expected = gradients(model)
        model.enable_gradient_checkpointing()
        model.zero_grad()
        loss = model(**inputs, return_dict=False)[0].square().mean()
        with torch.no_grad():
            model(**{**inputs, "hidden_states": other})
        assert handle.stream.segments[0].grid == (5, 2, 3)
        loss.backward()
        same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected)
        assert handle.stream.segments[0].grid == (5, 2, 3)
    function = model._gradient_checkpointing_func
    assert function.__module__.startswith("diffusers")


def test_a_recomputed_block_takes_the_spec_of_its_own_pass() -> None:
    model = CASES["wan"].build().train()
    later = replace(SPEC, chunks=moc.Chunks(size=4))  # its selections have the same shape
    with enable(model, SPEC) as handle:
        expected = gradients(model)
        model.enable_gradient_checkpointing()
        model.zero_grad()
        loss = model(**CASES["wan"].inputs(), return_dict=False)[0].square().mean()
        handle.set_spec(later)
        loss.backward()
        same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected)
        assert set(handle.specs().values()) == {later}


def test_route_dropout_is_of_training_alone(calls: Calls) -> None:
    model = CASES["wan"].build()
    inputs = CASES["wan"].inputs()
    with torch.no_grad(), enable(model, DROPOUT):
        same_out = torch.equal(model(**inputs)[0], model(**inputs)[0])
        model.train()
        other_out = torch.equal(model(**inputs)[0], model(**inputs)[0])
    assert (same_out, other_out) == (True, False)
    assert [call["seed"] is None for call in calls] == [True] * 4 + [False] * 4


def test_adapters_alone_are_trained_and_the_loss_falls() -> None:
    peft = pytest.importorskip("peft", reason="adapters are peft's")
    model = CASES["wan"].build()
    model.requires_grad_(False)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    inputs = CASES["wan"].inputs()
    wanted = torch.randn(inputs["hidden_states"].shape)
    optimiser = torch.optim.Adam(trained.values(), lr=0.02)
    losses = []
    with enable(model.train(), SPEC):
        for _ in range(12):
            optimiser.zero_grad()
            loss = (model(**inputs, return_dict=False)[0] - wanted).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        routed = [name for name in trained if ".attn1." in name]
        assert all(trained[name].grad.abs().max() > 0 for name in routed)
        assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
    assert losses[-1] < 0.99 * losses[0]


def test_adapters_get_the_gradients_of_dense_where_every_chunk_is_selected() -> None:
    peft = pytest.importorskip("peft", reason="adapters are peft's")
    model = CASES["cogvideox15"].build()
    model.requires_grad_(False)
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    expected = gradients(model, "cogvideox15")
    with enable(model, replace(SPEC, top_k=64)):
        same(gradients(model, "cogvideox15"), expected)


def test_half_precision_stays_in_its_dtype() -> None:
    model = CASES["hunyuan"].build().to(torch.bfloat16)
    inputs = CASES["hunyuan"].inputs()
    halves = {name: x.to(torch.bfloat16) if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        dense = model(**halves, return_dict=False)[0]
        with enable(model, replace(SPEC, top_k=64)):
            routed = model(**halves, return_dict=False)[0]
    assert routed.dtype is torch.bfloat16
    torch.testing.assert_close(routed.float(), dense.float(), rtol=0, atol=float(0.05 * dense.abs().max()))


class Told(list[tuple[str, moc.Layout]]):
    """A monitor that keeps what it is told."""

    def record(self, layer: str, layout: moc.Layout) -> None:
        self.append((layer, layout))


def test_the_monitor_is_told_every_routed_layout() -> None:
    model = CASES["hunyuan"].build()
    told = Told()
    with torch.no_grad(), enable(model, SPEC, per_layer={1: None}) as handle:
        expected = model(**CASES["hunyuan"].inputs())[0]
        handle.monitor = told
        assert torch.equal(model(**CASES["hunyuan"].inputs())[0], expected)
        handle.monitor = None
        model(**CASES["hunyuan"].inputs())
    assert [name for name, _ in told] == ["transformer_blocks.0.attn"]
    layout = told[0][1]
    assert layout.plan.streams == (CASES["hunyuan"].stream,)
    assert layout.key_lengths.tolist() == [[30, 4], [30, 7]]


def test_the_monitor_is_told_once_of_a_block_that_is_computed_again(calls: Calls) -> None:
    model = CASES["wan"].build().train()
    model.enable_gradient_checkpointing()
    told = Told()
    with enable(model, SPEC, monitor=told):
        gradients(model)
    assert [name for name, _ in told] == ["blocks.0.attn1", "blocks.1.attn1"]
    assert len(calls) == 4


def test_wrapped_models_are_unwrapped() -> None:
    peft = pytest.importorskip("peft", reason="adapters are peft's")
    model = CASES["wan"].build()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["to_q"]))
    with torch.no_grad():
        dense = wrapped(**CASES["wan"].inputs())[0]
        with enable(wrapped, SPEC) as handle:
            assert handle.layers == CASES["wan"].layers
            assert not torch.equal(wrapped(**CASES["wan"].inputs())[0], dense)
        assert torch.equal(wrapped(**CASES["wan"].inputs())[0], dense)


def test_a_model_that_trains_in_parallel_is_unwrapped() -> None:
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(CASES["wan"].build())
        with enable(parallel, SPEC) as handle:
            assert handle.layers == CASES["wan"].layers
            parallel(**CASES["wan"].inputs())
            assert handle.stream == CASES["wan"].stream
    finally:
        distributed.destroy_process_group()


def test_the_monitor_of_training_counts_the_layers() -> None:
    monitor = moc.training.Monitor()
    model = CASES["wan"].build()
    with torch.no_grad(), enable(model, SPEC, monitor=monitor):
        model(**CASES["wan"].inputs())
    summary = monitor.summary()
    assert set(summary.layers) == {"blocks.0.attn1", "blocks.1.attn1"}
