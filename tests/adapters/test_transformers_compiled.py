"""A model of transformers compiles whole (fullgraph); its masks are then judged on the device."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

import sparsemoc as moc

torch = pytest.importorskip("torch", reason="the models are torch's")
transformers = pytest.importorskip("transformers", reason="the adapter is for its models")
adapter: Any = import_module("sparsemoc.transformers")

SPEC = moc.RoutingSpec(
    chunks=moc.Chunks(size=5, tail="short"), top_k=1, anchors=("chunk", moc.first(2)), causal="token"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    made.set_attn_implementation(adapter.register(SPEC))
    return made


def tokens(rows: int) -> Any:
    torch.manual_seed(rows)
    return torch.randint(1, 50, (rows, 23))


def test_a_forward_pass_for_any_batch(model: Any, counted: Any) -> None:
    compiled = torch.compile(model, fullgraph=True, backend=counted)
    for rows in (2, 3, 5):
        ids = tokens(rows)
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
    assert counted.graphs == 2  # the first batch, and any other


def test_training(model: Any, counted: Any) -> None:
    ids, layer = tokens(2), model.model.layers[0].self_attn
    model(ids, labels=ids).loss.backward()
    wanted = layer.q_proj.weight.grad.clone()
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend=counted)(ids, labels=ids).loss.backward()
    torch.testing.assert_close(layer.q_proj.weight.grad, wanted)


def test_padding(model: Any, counted: Any) -> None:
    ids, mask = tokens(2), torch.ones(2, 23, dtype=torch.long)
    compiled = torch.compile(model, fullgraph=True, backend=counted)
    for valid in (23, 16, 4):
        mask[1, valid:] = 0
        found = compiled(ids, attention_mask=mask).logits
        torch.testing.assert_close(found, model(ids, attention_mask=mask).logits)
    with pytest.raises(
        RuntimeError, match=r"^sparsemoc: padding must stand at the end of each segment, got an attention"
    ):
        compiled(ids, attention_mask=mask.flip(1))
    assert counted.graphs == 1


def test_positions_that_may_pack_samples(model: Any, counted: Any) -> None:
    ids, positions = tokens(2), torch.arange(7, 30)[None]
    compiled = torch.compile(model, fullgraph=True, backend=counted)
    found = compiled(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, model(ids, position_ids=positions, use_cache=False).logits)
    with pytest.raises(
        RuntimeError, match=r"^sparsemoc: with this spec the model's mask must show each query all earlier"
    ):
        compiled(ids, position_ids=positions % 12, use_cache=False)
    assert counted.graphs == 1
