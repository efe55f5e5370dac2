"""Models of transformers: SDPA's logits where everything is selected, the oracle's attention where it is not."""

from __future__ import annotations

import doctest
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import oracle

torch = pytest.importorskip("torch", reason="the models are torch's")
transformers = pytest.importorskip("transformers", reason="the adapter is for its models")
adapter: Any = import_module("sparsemoc.transformers")
behind: Any = import_module("sparsemoc.adapters.transformers")

SHORT = moc.Chunks(size=5, tail="short")
SPEC = moc.RoutingSpec(chunks=SHORT, top_k=1, anchors=("chunk", moc.first(2)), causal="token")
ALL = replace(SPEC, top_k=100)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.5,
}


def made(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def use(model: Any, spec: moc.RoutingSpec, **options: Any) -> Any:
    model.set_attn_implementation(adapter.register(spec, **options))
    return model


def tokens(rows: int, length: int) -> Any:
    return torch.from_numpy(np.random.default_rng(length).integers(2, 50, (rows, length)))


@pytest.fixture(params=["Llama", "Qwen3"])
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def gradients(model: Any, ids: Any) -> dict[str, Any]:
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_everything_selected_is_sdpa(model: Any) -> None:
    ids = tokens(2, 23)
    logits, grads = model(ids).logits, gradients(model, ids)
    use(model, ALL)
    torch.testing.assert_close(model(ids).logits, logits, rtol=1e-4, atol=1e-4)
    for name, grad in gradients(model, ids).items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-3, atol=1e-4)


def test_the_first_layer_is_the_oracle(model: Any) -> None:
    ids, layer, seen = tokens(2, 23), model.model.layers[0], []
    hook = layer.self_attn.register_forward_hook(lambda _, given, out: seen.append(out[0]))
    use(model, SPEC)(ids)
    hook.remove()
    x = layer.input_layernorm(model.model.embed_tokens(ids))
    q, k, v = (getattr(layer.self_attn, f"{name}_proj")(x).unflatten(-1, (-1, 8)) for name in "qkv")
    if hasattr(layer.self_attn, "q_norm"):
        q, k = layer.self_attn.q_norm(q), layer.self_attn.k_norm(k)
    q, k = (turned(y.detach().double()) for y in (q, k))
    answer = oracle.run(q.numpy(), k.numpy(), v.detach().numpy(), SPEC, stream=moc.Stream((moc.Segment("video", 23),)))
    wanted = torch.from_numpy(answer.out).flatten(-2) @ layer.self_attn.o_proj.weight.T.double()
    torch.testing.assert_close(seen[0].double(), wanted, rtol=1e-4, atol=1e-4)
    assert 0 < np.mean([mask.mean() for mask in answer.mask]) < 0.45  # of 0.52 for causality alone


def turned(x: Any) -> Any:
    """Rotary positions, halves paired, base 10,000."""
    angle = torch.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


@pytest.mark.parametrize("cuts", [(22,), (1,), (4, 5, 6), (20, 21, 22)])
def test_a_cache_gives_the_logits_of_a_full_pass(model: Any, cuts: tuple[int, ...]) -> None:
    ids, parts = tokens(2, 23), []
    wanted = use(model, SPEC)(ids).logits
    assert (wanted - use(model, ALL)(ids).logits).abs().max() > 0.1
    use(model, SPEC)
    cache = transformers.DynamicCache(config=model.config)
    for first, end in zip((0, *cuts), (*cuts, 23), strict=True):
        parts.append(model(ids[:, first:end], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=1e-4, atol=1e-4)


def test_generate_is_the_greedy_choice_of_full_passes(model: Any) -> None:
    ids = tokens(2, 13)
    found = use(model, SPEC).generate(ids, max_new_tokens=9, do_sample=False, attention_mask=torch.ones_like(ids))
    for _ in range(9):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, ids)


def test_padding_at_the_end(model: Any) -> None:
    ids, mask = tokens(2, 23), torch.ones(2, 23, dtype=torch.long)
    mask[1, 16:] = 0
    logits = use(model, SPEC)(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[0], model(ids[:1]).logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1, :16], model(ids[1:, :16]).logits[0], rtol=1e-4, atol=1e-4)


def test_registering_again_replaces_the_spec() -> None:
    model, ids = made("Llama"), tokens(1, 23)
    routed = use(model, SPEC)(ids).logits
    everything = use(model, ALL, name="everything")(ids).logits
    model.set_attn_implementation("sparsemoc")
    assert torch.equal(model(ids).logits, routed)
    adapter.register(ALL)
    assert torch.equal(model(ids).logits, everything)


def test_route_dropout_in_training_repeats_under_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[Any] = []

    def attention(*given: Any, **how: Any) -> Any:
        seeds.append(how["seed"])
        return moc.attention(*given, **how)

    monkeypatch.setattr(behind, "attention", attention)
    spec = replace(SPEC, dropout=moc.RouteDropout(off=1.0, into=2.0))
    model, ids = use(made("Llama"), spec), tokens(2, 23)
    plain = model(ids).logits
    assert torch.equal(plain, use(model, SPEC)(ids).logits)
    use(model, spec).train()
    torch.manual_seed(5)
    wanted = gradients(model, ids)
    assert not torch.equal(model(ids).logits, plain)
    model.activation_checkpointing_enable()
    seeds.clear()
    torch.manual_seed(5)
    for name, grad in gradients(model, ids).items():
        assert torch.equal(grad, wanted[name])
    first, second, second_again, first_again = map(int, seeds)
    assert (first, second) == (first_again, second_again)
    assert first != second


def encoder(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
    return transformers.BertModel(transformers.BertConfig(**sizes, **options), add_pooling_layer=False).eval()


def test_an_encoder_needs_no_causal_spec() -> None:
    model, ids, mask = encoder(), tokens(2, 23), torch.ones(2, 23, dtype=torch.long)
    mask[1, 16:] = 0
    wanted = model(ids, attention_mask=mask)[0]
    spec = replace(ALL, causal="none", chunks=moc.Chunks(size=5))
    found = use(model, spec)(ids, attention_mask=mask)[0]
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1, :16], wanted[1, :16], rtol=1e-4, atol=1e-4)


def test_padding_at_the_end_of_each_segment() -> None:
    stream = moc.Stream((moc.Segment("text", 8), moc.Segment("video", 15)))
    spec = replace(ALL, causal="none", chunks=moc.Chunks(size=5), stream=stream, routable=("text", "video"))
    model, ids, mask = encoder(), tokens(2, 23), torch.ones(2, 23, dtype=torch.long)
    mask[1, 5:8] = mask[1, 19:] = 0
    wanted = model(ids, attention_mask=mask)[0]
    found = use(model, spec)(ids, attention_mask=mask)[0]
    torch.testing.assert_close(found[mask == 1], wanted[mask == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 23])
def test_a_sliding_window_that_hides_nothing(window: int | None) -> None:
    model, ids = made("Mistral", sliding_window=window), tokens(2, 23)
    wanted = model(ids).logits
    torch.testing.assert_close(use(model, ALL)(ids).logits, wanted, rtol=1e-4, atol=1e-4)


def test_positions_that_pack_nothing() -> None:
    model, ids = use(made("Llama"), SPEC), tokens(2, 23)
    positions = torch.arange(7, 30)[None]
    found = model(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-4, atol=1e-4)  # rotary positions are relative


def test_the_example_runs() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(adapter.register, globs={})
    assert doctest.DocTestRunner().run(test) == (0, 7)
