"""What the handle does: specs of layers, shots, removal, and models that do not disturb each other."""

from __future__ import annotations

import copy
import gc
import pickle
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import sparsemoc as moc
from tests.adapters.diffusers.conftest import Calls

torch = pytest.importorskip("torch", reason="the adapter needs torch")
pytest.importorskip("diffusers", reason="the adapter needs diffusers")
enable: Any = import_module("sparsemoc.diffusers").enable
CASES: Any = import_module("tests.adapters.diffusers.models").CASES

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=2)
ONE = replace(SPEC, top_k=1)
FIRST, SECOND = "blocks.0.attn1", "blocks.1.attn1"


def run(model: Any, name: str = "wan", **changed: Any) -> Any:
    with torch.no_grad():
        return model(**{**CASES[name].inputs(), **changed}, return_dict=False)[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [SPEC, SPEC]),
        ({"dense_layers": 1}, [None, SPEC]),
        ({"dense_layers": (1,)}, [SPEC, None]),
        ({"dense_layers": [FIRST, SECOND]}, [None, None]),
        ({"per_layer": {1: ONE}}, [SPEC, ONE]),
        ({"per_layer": {FIRST: None, SECOND: ONE}}, [None, ONE]),
        ({"dense_layers": 2, "per_layer": {0: ONE}}, [ONE, None]),
    ],
)
def test_layers_take_the_spec_that_they_are_given(options: Any, expected: list[Any], calls: Calls) -> None:
    model = CASES["wan"].build()
    dense = run(model)
    with enable(model, SPEC, **options) as handle:
        out = run(model)
        assert handle.specs() == dict(zip((FIRST, SECOND), expected, strict=True))
    assert [call["spec"] for call in calls] == [spec for spec in expected if spec is not None]
    assert torch.equal(out, dense) == (expected == [None, None])


def test_set_spec_changes_the_common_spec_alone(calls: Calls) -> None:
    model = CASES["wan"].build()
    with enable(model, SPEC, per_layer={1: ONE}) as handle:
        run(model)
        handle.set_spec(replace(SPEC, top_k=3))
        run(model)
        assert handle.spec == replace(SPEC, top_k=3)
    assert [call["spec"].top_k for call in calls] == [2, 1, 3, 1]


def test_shots_cut_the_video(calls: Calls) -> None:
    model = CASES["wan"].build()
    two = moc.Stream((moc.Segment("video", grid=(1, 2, 5), shot=0), moc.Segment("video", grid=(2, 2, 5), shot=1)))
    with enable(model, SPEC, shots=(0, 1)) as handle:
        run(model)
        assert handle.shots == (0, 1)
        handle.shots = None
        run(model)
        handle.shots = (0,)
        run(model)
    assert [call["stream"] for call in calls[::2]] == [
        two,
        moc.Stream((moc.Segment("video", grid=(3, 2, 5)),)),
        moc.Stream((moc.Segment("video", grid=(3, 2, 5), shot=0),)),
    ]


def test_captions_divide_the_text_and_its_padding(calls: Calls) -> None:
    model = CASES["hunyuan"].build()  # 7 text tokens, of which 4 and 7 are valid
    with enable(model, SPEC, shots=(0, 2), captions=(3, 2, 1)):
        run(model, "hunyuan")
    text = [("text", 3, None), ("text", 2, 0), ("text", 1, 1), ("text", 1, None)]
    segments = calls[0]["stream"].segments
    assert [(s.kind, s.tokens, s.shot) for s in segments] == [("video", 20, 0), ("video", 10, 1), *text]
    assert calls[0]["key_lengths"].tolist() == [[20, 10, 3, 1, 0, 0], [20, 10, 3, 2, 1, 1]]


def test_shots_change_the_answer_as_anchors_ask() -> None:
    model = CASES["wan"].build()
    spec = replace(SPEC, anchors=("shot",), top_k=0)
    with enable(model, spec, shots=(0, 1)):
        before = run(model)
        changed = CASES["wan"].inputs()["hidden_states"]
        changed[:, :, 1:] += 1.0  # the second shot, which the first does not see
        after = run(model, hidden_states=changed)
    assert torch.equal(before[:, :, :1], after[:, :, :1])
    assert not torch.equal(before[:, :, 1:], after[:, :, 1:])


def test_another_grid_of_as_many_tokens_makes_another_stream(calls: Calls) -> None:
    model = CASES["wan"].build()
    with enable(model, SPEC):
        run(model)
        run(model, hidden_states=torch.randn(2, 4, 5, 4, 6))
    assert [call["stream"].segments[0].grid for call in calls] == [(3, 2, 5)] * 2 + [(5, 2, 3)] * 2


def test_arguments_may_come_by_position(calls: Calls) -> None:
    model = CASES["wan"].build()
    inputs = CASES["wan"].inputs()
    with enable(model, SPEC), torch.no_grad():
        model(inputs["hidden_states"], inputs["timestep"], inputs["encoder_hidden_states"])
    assert calls[0]["stream"] == CASES["wan"].stream


def test_two_models_do_not_disturb_each_other() -> None:
    one, other = CASES["wan"].build(), CASES["hunyuan"].build()
    with enable(one, SPEC):
        alone = run(one)
    with enable(other, ONE):
        other_alone = run(other, "hunyuan")
    with enable(one, SPEC) as handle, enable(other, ONE):
        assert torch.equal(run(one), alone)
        assert torch.equal(run(other, "hunyuan"), other_alone)
        handle.remove()
        assert torch.equal(run(other, "hunyuan"), other_alone)


def test_enabling_twice_is_refused_until_removed() -> None:
    model = CASES["wan"].build()
    handle = enable(model, SPEC)
    with pytest.raises(moc.UnsupportedError, match=r"must not be enabled yet.*handle\.remove\(\)"):
        enable(model, SPEC)
    handle.remove()
    enable(model, SPEC).remove()


def test_a_failed_enable_leaves_the_model_as_it_was() -> None:
    model = CASES["wan"].build()
    with pytest.raises(moc.SpecError, match="dense_layers must name layers"):
        enable(model, SPEC, dense_layers=(7,))
    assert not model._forward_pre_hooks
    assert all(model.get_submodule(name).processor._attention_backend is None for name in (FIRST, SECOND))


def test_a_copy_of_an_enabled_model_is_refused() -> None:
    model = CASES["wan"].build()
    with enable(model, SPEC):
        twin = copy.deepcopy(model)
        with pytest.raises(moc.UnsupportedError, match=r"got a copy of it.*remove\(\) before copying"):
            run(twin)
        routed = run(model)
    assert not torch.equal(routed, run(model))


def test_an_enabled_model_is_saved_without_its_routing_but_not_pickled(tmp_path: Path) -> None:
    model = CASES["wan"].build()
    dense = run(model)
    with enable(model, SPEC):
        with pytest.raises(moc.UnsupportedError, match=r"must not be pickled.*handle\.remove\(\) first"):
            pickle.dumps(model)
        model.save_pretrained(tmp_path)
    for again in (type(model).from_pretrained(tmp_path), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(again), dense)


def test_a_model_that_is_gone_leaves_nothing_in_diffusers() -> None:
    from sparsemoc.adapters.diffusers import bridge

    model = CASES["wan"].build()
    enable(model, SPEC)
    assert bridge.is_installed()
    del model
    gc.collect()
    assert not bridge.is_installed()


def test_layers_may_share_a_processor() -> None:
    model = CASES["wan"].build()
    with enable(model, SPEC, per_layer={1: None}):
        expected = run(model)
    shared = model.get_submodule(FIRST).processor
    model.set_attn_processor(shared)
    with enable(model, SPEC, per_layer={1: None}):
        assert torch.equal(run(model), expected)
    assert model.get_submodule(SECOND).processor is shared


@pytest.mark.parametrize("name", ["wan", "cogvideox15"])
def test_fused_projections_give_the_same_answer(name: str) -> None:
    model = CASES[name].build()
    with enable(model, SPEC):
        expected = run(model, name)
    model.fuse_qkv_projections()
    with enable(model, SPEC):
        torch.testing.assert_close(run(model, name), expected, rtol=1e-4, atol=1e-5)


def test_what_would_make_a_layer_dense_without_a_word_is_refused() -> None:
    model = CASES["cogvideox"].build()
    dense = run(model, "cogvideox")
    with enable(model, SPEC):
        model.fuse_qkv_projections()
        with pytest.raises(moc.UnsupportedError, match=r"processor must stay.*FusedCogVideoXAttnProcessor2_0"):
            run(model, "cogvideox")
    model.unfuse_qkv_projections()  # puts back what it found, which is dense by now
    assert torch.equal(run(model, "cogvideox"), dense)
    model = CASES["wan"].build()
    with enable(model, SPEC):
        model.set_attention_backend("native")
        with pytest.raises(moc.UnsupportedError, match="processor must stay as enable set it, got the attention backe"):
            run(model)
    model.reset_attention_backend()


def test_dense_layers_keep_the_backend_that_the_processor_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsemoc.adapters.diffusers import bridge

    asked = []
    dense = bridge.dense

    def telling(*args: Any, **options: Any) -> Any:
        asked.append(options["backend"])
        return dense(*args, **options)

    monkeypatch.setattr(bridge, "dense", telling)
    model = CASES["wan"].build()
    model.get_submodule(FIRST).processor._attention_backend = "_native_math"
    with enable(model, SPEC, dense_layers=2):
        run(model)
    assert asked == ["_native_math", None]
    assert model.get_submodule(FIRST).processor._attention_backend == "_native_math"


def test_the_private_names_that_the_bridge_needs_are_there() -> None:
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _AttentionBackendRegistry,
        dispatch_attention_fn,
    )

    from sparsemoc.adapters.diffusers import bridge

    listed = list(AttentionBackendName)
    bridge.install(lambda query, key, value, attn_mask=None: query + 1)
    bridge.install(lambda query, key, value, attn_mask=None: query + 2)
    q = torch.zeros(1, 2, 1, 4)
    bridge.uninstall()
    assert torch.equal(dispatch_attention_fn(q, q, q, backend=bridge.MEMBER), q + 1)
    assert list(AttentionBackendName) == listed
    bridge.uninstall()
    tables = (
        _AttentionBackendRegistry._backends,
        _AttentionBackendRegistry._constraints,
        _AttentionBackendRegistry._supported_arg_names,
    )
    assert all(bridge.MEMBER not in table for table in tables)


@pytest.mark.parametrize("version", ["0.39.1", "0.43.0", "1.0.0.dev0"])
def test_another_version_of_diffusers_is_refused(version: str) -> None:
    from sparsemoc.adapters.diffusers import bridge

    with pytest.raises(moc.UnsupportedError, match=rf"at least 0\.40 and below 0\.43, got {version}"):
        bridge.check_version(version)
