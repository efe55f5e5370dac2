"""What routing cannot honour in models of transformers is refused, in words that say what to do."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

import sparsemoc as moc

torch = pytest.importorskip("torch", reason="the models are torch's")
transformers = pytest.importorskip("transformers", reason="the adapter is for its models")
adapter: Any = import_module("sparsemoc.transformers")

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=5, tail="short"), top_k=1, anchors=("chunk",), causal="token")
FREE = replace(SPEC, causal="none")
GOOD = 'RoutingSpec(chunks=Chunks(size=256, tail="short"), anchors=("chunk", first(4)), causal="token")'
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
IDS = torch.arange(40).reshape(2, 20)
ONES = torch.ones_like(IDS)


def made(kind: str = "LlamaForCausalLM", spec: moc.RoutingSpec = SPEC, **options: Any) -> Any:
    config = getattr(transformers, f"{kind.removesuffix('ForCausalLM').removesuffix('Model')}Config")
    model = getattr(transformers, kind)(config(**{**SIZES, **options})).eval()
    model.set_attn_implementation(adapter.register(spec))
    return model


def refused(kind: type[Exception], model: Any, *given: Any, **options: Any) -> str:
    with pytest.raises(kind) as error:
        model(*given, **options)
    text = str(error.value)
    assert text.startswith("sparsemoc: ")
    return text.removeprefix("sparsemoc: ")


def test_causality_of_another_kind() -> None:
    assert refused(moc.SpecError, made(spec=replace(SPEC, causal="chunk")), IDS) == (
        f'the model is causal, so the spec must have causal="token", got causal="chunk". Hint: {GOOD}.'
    )
    text = (
        'the model is not causal, so the spec must have causal="none" or "chunk", got causal="token". '
        'Hint: dataclasses.replace(spec, causal="none").'
    )
    assert refused(moc.SpecError, made("BertModel"), IDS) == text
    layer = made().model.layers[0].self_attn  # where no mask function is called, the attention function says it
    layer.is_causal = False
    assert refused(moc.SpecError, layer, torch.zeros(1, 3, 16), (torch.ones(1, 3, 8), torch.ones(1, 3, 8))) == text


LEFT, HOLE = ONES.clone(), ONES.clone()
LEFT[1, :4] = 0
HOLE[0, 7] = 0


@pytest.mark.parametrize("mask", [LEFT, HOLE])
def test_padding_before_tokens(mask: Any) -> None:
    assert refused(moc.UnsupportedError, made(), IDS, attention_mask=mask) == (
        "padding must stand at the end of each segment, got an attention mask with tokens behind padding. "
        'Hint: tokenizer.padding_side = "right"; generate from prompts of unlike length one by one.'
    )


def test_padding_within_what_is_cached() -> None:
    model, mask = made(), ONES.clone()
    mask[1, 15:] = 0
    cache = model(IDS, attention_mask=mask).past_key_values
    text = refused(
        moc.UnsupportedError,
        model,
        IDS[:, :1],
        attention_mask=torch.cat([mask, ONES[:, :1]], 1),
        past_key_values=cache,
    )
    assert text.startswith("padding must stand at the end of each segment")


def test_a_mask_of_other_tokens() -> None:
    stream = moc.Stream((moc.Segment("video", 19),))
    padded = ONES.clone()
    padded[1, 15:] = 0
    model = made("BertModel", replace(FREE, stream=stream))
    assert refused(moc.ShapeError, model, IDS, attention_mask=padded) == (
        "the attention mask must cover the keys, and the spec's stream too where it has one, got 20 keys, a mask of 20 "
        "and 19 tokens of the stream."
    )
    with pytest.raises(
        moc.ShapeError, match=r"^attention: `q` must have at most 19 tokens, those of the stream, got 20\."
    ):
        model(IDS)


def test_a_mask_of_pairs() -> None:
    assert refused(moc.UnsupportedError, made(), IDS, attention_mask=torch.ones(2, 1, 20, 20)) == (
        "the attention mask must be a padding mask, (batch, tokens), got torch.float32 (2, 1, 20, 20). "
        "What a query sees is the spec's to say. Hint: leave it out."
    )


SHOWN = (
    "with this spec the model's mask must show each query all earlier keys, and no later one, got a sliding window, "
    "local chunks, packed samples, a mask of blocks, or a function of the user's own. Hint: pass packed samples as "
    "rows with padding at the end; config.sliding_window = None."
)


def test_packed_samples() -> None:
    positions = torch.arange(20)[None].expand(2, -1) % 12
    assert refused(moc.UnsupportedError, made(), IDS, position_ids=positions, use_cache=False) == SHOWN


def masks_of(model: Any, **options: Any) -> Any:
    from transformers.masking_utils import create_causal_mask

    embeds = torch.zeros(2, 20, 16)
    return create_causal_mask(model.config, embeds, attention_mask=None, past_key_values=None, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"block_sequence_ids": torch.tensor([[-1] * 15 + [3] * 5] * 2)},
        {"and_mask_function": lambda b, h, q, k: k > 3},
        {"or_mask_function": lambda b, h, q, k: k < 3},
    ],
)
def test_masks_that_show_something_else(options: dict[str, Any]) -> None:
    model = made()
    assert masks_of(model) is None
    assert masks_of(model, block_sequence_ids=torch.full((2, 20), -1)) is None
    assert refused(moc.UnsupportedError, lambda **given: masks_of(model, **given), **options) == SHOWN


def test_sliding_windows() -> None:
    model = made("MistralForCausalLM", sliding_window=19, num_key_value_heads=2)
    assert refused(moc.UnsupportedError, model, IDS, use_cache=False) == SHOWN
    with pytest.raises(moc.UnsupportedError) as error:  # where no mask was asked for
        transformers.AttentionInterface()["sparsemoc"](model, *torch.zeros(3, 1, 2, 20, 8), None, sliding_window=19)
    assert str(error.value) == (
        "sparsemoc: a sliding window must hold all keys, got 20 keys and sliding_window=19. "
        "Hint: config.sliding_window = None; the spec's anchors may hold window(n)."
    )
    model = made("MistralForCausalLM", sliding_window=20, num_key_value_heads=2)
    cache = model(IDS).past_key_values
    text = refused(moc.UnsupportedError, model, IDS[:, :1], past_key_values=cache)
    assert text == (
        "the queries must be the last of all tokens so far, got 1 queries from position 20, and 20 keys from "
        'position 1: a static or sliding cache, or cross-attention. Hint: cache_implementation="dynamic", '
        "config.sliding_window = None."
    )


def test_local_windows_of_an_encoder() -> None:
    model = made("ModernBertModel", FREE, local_attention=8, num_hidden_layers=2, eos_token_id=3)
    text = refused(moc.UnsupportedError, model, IDS, attention_mask=ONES)
    assert text.startswith("with this spec the model's mask must show each query all keys, got a sliding window")


def test_a_static_cache() -> None:
    model = made()
    generate = model.generate
    text = refused(
        moc.UnsupportedError, generate, IDS, attention_mask=ONES, max_new_tokens=3, cache_implementation="static"
    )
    assert text.startswith("the queries must be the last of all tokens so far, got 20 queries from position 0, and 2")
    cache = transformers.StaticCache(model.config, max_cache_len=20)
    model(IDS, past_key_values=cache)  # full, it is as any other
    text = refused(moc.UnsupportedError, model, IDS[:, :1], past_key_values=cache)
    assert text.startswith("the queries must be the last of all tokens so far, got 1 queries from position on the dev")


@pytest.mark.parametrize(
    ("spec", "got"),
    [
        (replace(SPEC, chunks=moc.Chunks(size=5)), "tail='balanced' and unit='token'"),
        (replace(SPEC, unit=moc.Block(4)), "tail='short' and unit=Block(n=4)"),
    ],
)
def test_routes_that_a_new_token_would_change(spec: moc.RoutingSpec, got: str) -> None:
    model = made(spec=spec)
    cache = model(IDS).past_key_values
    assert refused(moc.SpecError, model, IDS[:, :1], past_key_values=cache) == (
        'with a KV cache the spec must have Chunks(tail="short") and unit="token", so that a new token changes no '
        f"earlier routes, got {got}. Hint: {GOOD}."
    )


def test_cross_attention() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    model = made("BartModel", FREE, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes)
    layer = model.decoder.layers[0].encoder_attn
    assert refused(moc.UnsupportedError, layer, torch.zeros(1, 3, 16), torch.zeros(1, 5, 16)) == (
        "where attention is not causal, queries and keys must be the same tokens, got 3 and 5: cross-attention. "
        "Hint: set it for the parts of a model that have self-attention alone."
    )


def test_attention_dropout() -> None:
    model = made(attention_dropout=0.1)
    model(IDS)
    assert refused(moc.UnsupportedError, model.train(), IDS) == (
        "attention dropout must be 0, got 0.1: single weights are not dropped. "
        "Hint: config.attention_dropout = 0.0; RoutingSpec(dropout=RouteDropout(off=0.5)) drops routes."
    )


@pytest.mark.parametrize(("argument", "value"), [("output_attentions", True), ("softcap", 30.0), ("s_aux", ONES)])
def test_arguments_that_ask_for_more(argument: str, value: Any) -> None:
    model = made()
    model(IDS, **{argument: None if value is not True else False})
    text = refused(moc.UnsupportedError, model, IDS, **{argument: value})
    assert text == (
        f"{argument} must be left out, got {type(value).__name__}: it asks for what routing does not compute. "
        'Hint: model.set_attn_implementation("eager").'
    )


@pytest.mark.parametrize("name", ["", "a b", "sdpa", "my_sdpa", "flash_moc", "paged_moc", 3, None])
def test_names_that_mean_something_else(name: Any) -> None:
    with pytest.raises(moc.SpecError) as error:
        adapter.register(SPEC, name)
    assert str(error.value).startswith('register: name must be a word of its own, without "eager", "sdpa", "flash", ')


def test_a_name_that_another_has() -> None:
    transformers.AttentionInterface.register("someone", lambda *given, **options: None)
    with pytest.raises(moc.SpecError) as error:
        adapter.register(SPEC, "someone")
    assert str(error.value) == (
        'register: name must be a word of its own, without "eager", "sdpa", "flash", "flex" or "paged", by which '
        "transformers knows other implementations, got 'someone' (str). Hint: name=\"sparsemoc\"."
    )


def test_a_spec_that_is_none() -> None:
    with pytest.raises(moc.SpecError, match=r"^register: spec must be a RoutingSpec, got 3 \(int\)\. Hint: "):
        adapter.register(3)
