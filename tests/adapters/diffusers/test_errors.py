"""Wrong use gives an error that names the rule, the value and a hint."""

from __future__ import annotations

import re
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

import sparsemoc as moc

torch = pytest.importorskip("torch", reason="the adapter needs torch")
pytest.importorskip("diffusers", reason="the adapter needs diffusers")
adapter: Any = import_module("sparsemoc.diffusers")
masks: Any = import_module("sparsemoc.adapters.diffusers.masks")
family: Any = import_module("sparsemoc.adapters.diffusers.family")
bridge: Any = import_module("sparsemoc.adapters.diffusers.bridge")
dispatch: Any = import_module("diffusers.models.attention_dispatch").dispatch_attention_fn
CASES: Any = import_module("tests.adapters.diffusers.models").CASES
enable = adapter.enable

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=2)
STREAM = moc.Stream((moc.Segment("video", grid=(3, 2, 5)), moc.Segment("text", 7)))


def run(model: Any, name: str = "wan", **changed: Any) -> Any:
    with torch.no_grad():
        return model(**{**CASES[name].inputs(), **changed}, return_dict=False)[0]


def test_an_unknown_family_is_described_by_the_lines_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["wan"].build()
    with enable(model, SPEC):
        expected = run(model)
    monkeypatch.delitem(family._FAMILIES, "WanTransformer3DModel")
    with pytest.raises(
        moc.UnsupportedError, match=r"family that is known .*MochiTransformer3DModel.*got Wan"
    ) as caught:
        enable(model, SPEC)
    lines = re.search(r"    from sparsemoc.*?family=family\)\n", str(caught.value), re.DOTALL)
    assert lines is not None
    names = {"model": model, "spec": SPEC}
    exec(re.sub(r"^    ", "", lines[0], flags=re.MULTILINE), names)
    assert torch.equal(run(model), expected)
    names["handle"].remove()
    adapter.register_family("WanTransformer3DModel", names["family"])
    with enable(model, SPEC):
        assert torch.equal(run(model), expected)


def test_subclasses_of_a_known_model_are_known() -> None:
    model = CASES["wan"].build()
    model.__class__ = type("Tuned", (type(model),), {})
    with enable(model, SPEC) as handle:
        assert handle.layers == CASES["wan"].layers


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": "("}, r"Family: layers must be a regular expression.*got '\('"),
        ({"order": ("text",)}, r"Family: order must be \(\"video\",\).*got \('text',\)"),
        ({"order": ("video", "text")}, "Family: text must be given where `order` holds text"),
        ({"text": lambda config, inputs: 3}, "Family: text must be given where `order` holds text, and only there"),
    ],
)
def test_a_family_is_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(moc.SpecError, match=text):
        adapter.Family(**{"layers": "a", "grid": lambda config, inputs: (1, 1, 1), **options})


def test_a_processor_of_ones_own_serves_a_model_that_asks_no_dispatcher() -> None:
    class Own(adapter.Processor):  # type: ignore[misc]
        def routed(self, attn: Any, video: Any, text: Any, mask: Any, rotary: Any) -> Any:
            seen.append(self.layer.name)
            return torch.zeros_like(video)

    seen: list[str] = []
    model = CASES["cosmos"].build()
    grid = lambda config, inputs: adapter.patches(inputs["hidden_states"].shape[2:], config.patch_size)  # noqa: E731
    own = adapter.Family(r"transformer_blocks\.\d+\.attn1", grid, processor=Own)
    with enable(model, SPEC, family=own, per_layer={0: None}):
        run(model, "cosmos")
    assert seen == ["transformer_blocks.1.attn1"]


def test_a_family_must_fit_the_model() -> None:
    model = CASES["wan"].build()
    grid = lambda config, inputs: inputs["hidden_states"].shape[2:]  # noqa: E731  # forgets the patches
    with enable(model, SPEC, family=adapter.Family(r"blocks\.\d+\.attn1", grid)):
        text = r"blocks\.0\.attn1: the latent grid must match the tokens: video \(3, 4, 10\) make 120, got 30 tokens"
        with pytest.raises(moc.ShapeError, match=text):
            run(model)
    with pytest.raises(moc.SpecError, match=r"must match attention modules.*'layers', which.*'blocks\.0\.attn1'"):
        enable(model, SPEC, family=adapter.Family("layers", grid))
    cosmos = CASES["cosmos"].build()
    with pytest.raises(moc.UnsupportedError, match="its `_parallel_config`, got CosmosAttnProcessor2_0"):
        enable(cosmos, SPEC, family=adapter.Family(r"transformer_blocks\.\d+\.attn1", grid))
    with pytest.raises(moc.SpecError, match="family must be a Family, got 3"):
        adapter.register_family("Wan", 3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"spec": "paper"}, "enable: spec must be a RoutingSpec, got 'paper'"),
        ({"spec": moc.RoutingSpec(stream=STREAM)}, "enable: spec must have no stream, got Stream.*model's own"),
        ({"per_layer": {0: moc.RoutingSpec(stream=STREAM)}}, r"enable: per_layer\[0\] must have no stream"),
        ({"per_layer": {0: 3}}, r"enable: per_layer\[0\] must be a RoutingSpec, got 3"),
        ({"per_layer": [SPEC]}, r"enable: per_layer must map layers to specs, got \[Rout"),
        ({"per_layer": {2: SPEC}}, "enable: per_layer must name layers by 0 to 1 or by their names, got 2"),
        ({"per_layer": {"block.0.attn1": SPEC}}, r'per_layer must name layers.*Did you mean "blocks\.0\.attn1"'),
        ({"dense_layers": 3}, "enable: dense_layers must be a number of layers from 0 to 2.*got 3"),
        ({"dense_layers": (True,)}, "enable: dense_layers must name layers by 0 to 1.*got True"),
        ({"dense_steps": -1}, "enable: dense_steps must be a number of steps.*got -1"),
        ({"dense_steps": "3"}, "enable: dense_steps must be a number of steps.*got '3'"),
        ({"dense_steps": (0, 0.5)}, "enable: dense_steps must be a whole number >= 0, got 0.5"),
        ({"shots": (1, 2)}, r"enable: shots must be the first latent frame of each shot, ascending from 0, got \(1, 2"),
        ({"shots": (0, 2, 2)}, r"ascending from 0, got \(0, 2, 2\)"),
        ({"shots": 3}, r"ascending from 0, got 3"),
        ({"captions": (3,)}, r"enable: captions must be .*none without shots, got \(3,\)"),
        ({"shots": (0, 1), "captions": (3, 1)}, r"enable: captions must be .*3 numbers, got \(3, 1\)"),
        ({"monitor": 3}, r"enable: monitor must have record\(layer_name, layout\), got 3"),
        ({"options": 3}, "enable: options must be an Options value or None, got 3"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], text: str) -> None:
    model = CASES["wan"].build()
    with pytest.raises(moc.SpecError, match=text):
        enable(model, options.pop("spec", SPEC), **options)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("target", [3, SimpleNamespace(components={"vae": None})])
def test_the_target_is_a_pipeline_or_a_transformer(target: Any) -> None:
    with pytest.raises(
        moc.SpecError, match=r"enable: the (target must be a pipeline|pipeline must have a transformer)"
    ):
        enable(target, SPEC)


def test_shots_and_captions_must_fit_the_pass() -> None:
    model = CASES["hunyuan"].build()
    with enable(model, SPEC, shots=(0, 3)) as handle:
        with pytest.raises(moc.ShapeError, match=r"shots must begin before the end .* 3 frames, got \(0, 3\)"):
            run(model, "hunyuan")
        handle.set_shots((0, 1), captions=(4, 4, 0))
        with pytest.raises(
            moc.ShapeError, match=r"captions must hold at most the 7 text tokens.*\(4, 4, 0\), 8 in all"
        ):
            run(model, "hunyuan")


def test_a_latent_smaller_than_a_patch_is_refused() -> None:
    model = CASES["wan"].build()
    with enable(model, SPEC), pytest.raises(moc.ShapeError, match=r"at least one patch, got .* = \(3, 0, 5\)"):
        run(model, hidden_states=torch.zeros(1, 4, 3, 1, 10))


def test_ltx_needs_its_grid() -> None:
    model = CASES["ltx"].build()
    coords = torch.zeros(2, 3, 30)
    with enable(model, SPEC), pytest.raises(moc.ShapeError, match=r"num_frames, height and width.*\(None, 2, 5\)"):
        run(model, "ltx", num_frames=None, video_coords=coords)
    text = r"are \(4, 2, 5\) and make 40, got 30 tokens of hidden_states"
    with enable(model, SPEC), pytest.raises(moc.ShapeError, match=text):
        run(model, "ltx", num_frames=4)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("hunyuan", "encoder_hidden_states"), ("hunyuan15", "encoder_hidden_states_2"), ("hunyuan15", "image_embeds")],
)
def test_text_that_shares_the_sequence_must_be_there(name: str, argument: str) -> None:
    model = CASES[name].build()
    with enable(model, SPEC), pytest.raises(moc.ShapeError, match=f"forward must be given {argument}, whose tokens"):
        run(model, name, **{argument: None})


@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        (torch.zeros(2, 1, 1, 37), moc.UnsupportedError, r"must be bool, True for valid keys, got torch\.float32"),
        (torch.ones(2, 1, 37, 37, dtype=torch.bool), moc.UnsupportedError, r"differs from query to query"),
        (torch.ones(2, 4, 1, 37, dtype=torch.bool), moc.UnsupportedError, r"got shape \(2, 4, 1, 37\) for 7 text"),
        (torch.ones(2, 1, 1, 36, dtype=torch.bool), moc.ShapeError, r"must have 37 keys, got shape \(2, 1, 1, 36\)"),
        (torch.ones(2, 8, dtype=torch.bool), moc.ShapeError, r"must have 7 keys, got shape \(2, 8\)"),
    ],
)
def test_masks_that_cannot_be_honoured_are_refused(mask: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        masks.key_lengths("layer", STREAM, mask)


def test_a_mask_of_video_alone_is_refused() -> None:
    video = moc.Stream((moc.Segment("video", grid=(3, 2, 5)),))
    with pytest.raises(moc.UnsupportedError, match=r"must be one of keys that pads text.*for 0 text tokens"):
        masks.key_lengths("layer", video, torch.ones(2, 1, 1, 30, dtype=torch.bool))


@pytest.mark.parametrize(("hidden", "text"), [(31, "text before valid text"), (3, "1 video tokens"), (36, None)])
def test_checked_mode_reads_the_mask(hidden: int, text: str | None) -> None:
    mask = torch.ones(1, 1, 1, 37, dtype=torch.bool)
    mask[..., hidden] = False
    if text is None:
        assert masks.key_lengths("layer", STREAM, mask, checked=True).tolist() == [[30, 6]]
        return
    with pytest.raises(moc.ShapeError, match=f"nothing but the end of the text, got one that hides {text}"):
        masks.key_lengths("layer", STREAM, mask, checked=True)


def test_text_is_counted_without_reading_the_mask() -> None:
    mask = torch.ones(2, 1, 1, 37, dtype=torch.bool, device="meta")  # a tensor without values: reading it raises
    assert masks.key_lengths("layer", STREAM, mask).shape == (2, 2)
    with pytest.raises(RuntimeError, match="meta"):
        masks.key_lengths("layer", STREAM, mask, checked=True)


@pytest.mark.parametrize("name", ["wan", "cosmos", "cogvideox"])
def test_a_mask_at_a_layer_is_refused(name: str) -> None:
    model = CASES[name].build()
    with enable(model, SPEC) as handle:
        run(model, name)
        attention = model.get_submodule(handle.layers[0])
        channels = attention.to_q.in_features
        texts = {"encoder_hidden_states": torch.zeros(2, 7, channels)} if name == "cogvideox" else {}
        with pytest.raises(moc.UnsupportedError, match=r"attn1: .*would be dropped"):
            attention(torch.zeros(2, 30, channels), attention_mask=torch.zeros(2, 30), **texts)


@pytest.mark.parametrize("option", [{"dropout_p": 0.1}, {"is_causal": True}])
def test_what_a_layer_cannot_honour_is_refused(option: dict[str, Any]) -> None:
    model = CASES["wan"].build()
    q = torch.zeros(2, 30, 2, 12)
    with enable(model, SPEC) as handle:
        run(model)
        layer = model.get_submodule(handle.layers[0]).processor._parallel_config
        with pytest.raises(moc.UnsupportedError, match=r"blocks\.0\.attn1: dropout_p must be 0 and is_causal False"):
            dispatch(q, q, q, backend=bridge.MEMBER, parallel_config=layer, **option)


def test_a_processor_that_does_not_say_its_layer_is_refused() -> None:
    model = CASES["wan"].build()
    q = torch.zeros(2, 30, 2, 12)
    with (
        enable(model, SPEC),
        pytest.raises(moc.UnsupportedError, match=r"must pass its `_parallel_config`.*sparsemoc\.diffusers\.Processor"),
    ):
        dispatch(q, q, q, backend=bridge.MEMBER)


def parallel(**degrees: Any) -> Any:
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ParallelConfig

    return ParallelConfig(context_parallel_config=ContextParallelConfig(**degrees))


def test_a_model_that_is_split_after_enable_is_refused() -> None:
    config = parallel(ulysses_degree=2)
    model = CASES["wan"].build()
    q = torch.zeros(2, 30, 2, 12)
    with enable(model, SPEC):
        with pytest.raises(moc.UnsupportedError, match=r"parallelism must be set up before.*then enable"):
            dispatch(q, q, q, backend=bridge.MEMBER, parallel_config=config)
        model._parallel_config = config
        with pytest.raises(moc.UnsupportedError, match=r"parallelism must be set up before.*then enable"):
            run(model)


@pytest.mark.parametrize(
    ("name", "degrees", "text"),
    [
        ("hunyuan", {"ulysses_degree": 2}, "a model of text and video"),
        ("cosmos", {"ulysses_degree": 2}, "one with processors of its own"),
        ("wan", {"ring_degree": 2}, "ring_degree=2"),
        ("wan", {"ulysses_degree": 2, "ulysses_anything": True}, "ulysses_anything=True"),
    ],
)
def test_context_parallelism_that_routes_cannot_follow_is_refused(name: str, degrees: Any, text: str) -> None:
    model = CASES[name].build()
    model._parallel_config = parallel(**degrees)
    with pytest.raises(moc.UnsupportedError, match=f"must be Ulysses over video tokens in equal parts, got .*{text}"):
        enable(model, SPEC)
    assert not model._forward_pre_hooks
