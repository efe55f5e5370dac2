"""torch.compile makes one graph for each spec and stream, of blocks or of the whole model, without a break."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

import sparsemoc as moc

torch = pytest.importorskip("torch", reason="the adapter needs torch")
pytest.importorskip("diffusers", reason="the adapter needs diffusers")
CompileCounterWithBackend: Any = import_module("torch._dynamo.testing").CompileCounterWithBackend
enable: Any = import_module("sparsemoc.diffusers").enable
CASES: Any = import_module("tests.adapters.diffusers.models").CASES

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        "In CPU autocast",  # Mochi's
        "Dynamo detected a call to a `functools.lru_cache`",  # diffusers' and torch's own
        "The .grad attribute of a Tensor that is not a leaf",
    )
]
SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=6, align="frame"), top_k=2)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def forward(model: Any, name: str = "wan", **changed: Any) -> Any:
    with torch.no_grad():
        return model(**{**CASES[name].inputs(), **changed}, return_dict=False)[0]


def gradients(model: Any, name: str, compiled: Any = None) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    out = (model if compiled is None else compiled)(**CASES[name].inputs(), return_dict=False)[0]
    out.square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(found: tuple[Any, dict[str, Any]], expected: tuple[Any, dict[str, Any]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=2e-5 * expected[0].abs().max())
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-3, atol=1e-4 * max(grad.abs().max(), 1e-4), msg=name)


@pytest.mark.parametrize("regional", [True, False])
def test_steps_grids_and_specs_flip_between_graphs_and_make_no_more(regional: bool) -> None:
    model = CASES["wan"].build()
    other = torch.randn(2, 4, 5, 4, 6)  # as many tokens, another grid
    counter = CompileCounterWithBackend("eager")

    def every(model: Any) -> list[Any]:
        found = []
        for step in (0, 1):
            handle.step = step
            found += [forward(model), forward(model, hidden_states=other)]
        handle.set_spec(replace(SPEC, top_k=1))
        found.append(forward(model))
        handle.set_spec(SPEC)
        return found

    with enable(model, SPEC, dense_steps=1) as handle:
        expected = every(model)
        compiled = model
        if regional:
            model.compile_repeated_blocks(fullgraph=True, backend=counter)
        else:
            compiled = torch.compile(model, fullgraph=True, backend=counter)
        for x, y in zip(every(compiled), expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
        graphs = counter.frame_count
        for x, y in zip(every(compiled), expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
        assert counter.frame_count == graphs
        # Of blocks: dense, two grids, another spec; both blocks share them. The whole model sees the grid when dense,
        # and the sizes that it takes as symbols make a graph of the hook, which is compiled apart.
        assert graphs == (4 if regional else 6)


def test_blocks_train_compiled_with_checkpoints_and_route_dropout() -> None:
    model = CASES["wan"].build().train()
    spec = replace(SPEC, top_k=3, dropout=moc.RouteDropout(off=1.0, into=1.0))
    counter = CompileCounterWithBackend("aot_eager")
    with enable(model, spec):
        torch.manual_seed(1)
        expected = gradients(model, "wan")
        model.enable_gradient_checkpointing()
        model.compile_repeated_blocks(fullgraph=True, backend=counter)
        torch.manual_seed(1)
        same(gradients(model, "wan"), expected)
        assert counter.frame_count == 1
        torch.manual_seed(2)
        assert not torch.equal(gradients(model, "wan")[0], expected[0])  # other routes by the same graph
        assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["hunyuan", "cogvideox15", "mochi"])
def test_the_whole_model_with_its_text_is_one_graph(name: str) -> None:
    model = CASES[name].build()
    counter = CompileCounterWithBackend("aot_eager")
    with enable(model, SPEC):
        expected = gradients(model, name)
        same(gradients(model, name, torch.compile(model, fullgraph=True, backend=counter)), expected)
    assert counter.frame_count == 1


def test_the_whole_model_trains_compiled_with_checkpoints() -> None:
    model = CASES["wan"].build().train()
    with enable(model, SPEC):
        expected = gradients(model, "wan")
        model.enable_gradient_checkpointing()
        gradients(model, "wan")  # uncompiled, which puts our checkpoint function in place
        same(gradients(model, "wan", torch.compile(model, fullgraph=True, backend="aot_eager")), expected)


def test_a_model_inside_a_compiled_function_is_part_of_its_graph() -> None:
    model = CASES["wan"].build()
    inputs = CASES["wan"].inputs()
    other = torch.randn(2, 4, 5, 4, 6)
    counter = CompileCounterWithBackend("eager")

    def doubled(x: Any) -> Any:
        with torch.no_grad():
            return model(x * 2, inputs["timestep"], inputs["encoder_hidden_states"], return_dict=False)[0]

    with enable(model, SPEC):
        compiled = torch.compile(doubled, fullgraph=True, backend=counter)
        for x in (inputs["hidden_states"], other):
            torch.testing.assert_close(compiled(x), doubled(x), rtol=0, atol=1e-6)
    assert counter.frame_count == 2


def test_a_compiled_model_refuses_what_would_make_it_dense_without_a_word() -> None:
    model = CASES["wan"].build()
    with enable(model, SPEC):
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        forward(compiled)
        model.set_attention_backend("native")
        with pytest.raises(Exception, match="the processor must stay as enable set it"):
            forward(compiled)
    model.reset_attention_backend()


def test_what_was_compiled_is_dense_again_after_remove() -> None:
    model = CASES["wan"].build()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    dense = forward(compiled)
    handle = enable(compiled, SPEC)
    assert not torch.equal(forward(compiled), dense)
    handle.remove()
    assert torch.equal(forward(compiled), dense)
