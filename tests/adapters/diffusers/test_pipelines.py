"""Pipelines end to end, offline, with guidance; and which denoising step is dense."""

from __future__ import annotations

import copy
import inspect
from importlib import import_module
from typing import Any

import pytest

import sparsemoc as moc
from tests.adapters.diffusers.conftest import Calls

torch = pytest.importorskip("torch", reason="the adapter needs torch")
diffusers: Any = pytest.importorskip("diffusers", reason="the adapter needs diffusers")
enable: Any = import_module("sparsemoc.diffusers").enable
models: Any = import_module("tests.adapters.diffusers.models")
CASES = models.CASES

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=2)
#: Of the clip: 5 frames make 2 latent frames, 32 x 48 pixels a latent of 4 x 6, and patches a grid of (2, 2, 3).
CLIP = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 3}
GRID = (2, 2, 3)


def wan_pipe(transformers: int = 1, scheduler: Any = None) -> Any:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0) if scheduler is None else scheduler
    second = {} if transformers == 1 else {"transformer_2": CASES["wan"].build(), "boundary_ratio": 0.8}
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, transformer=CASES["wan"].build(), vae=vae.eval(), scheduler=scheduler,
        **second,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_frames(pipe: Any, **options: Any) -> Any:
    return pipe(
        prompt_embeds=models.draw(1, 7, 8), negative_prompt_embeds=models.draw(1, 7, 8) * -1, guidance_scale=3.0,
        output_type="pt", generator=torch.Generator().manual_seed(0), **{**CLIP, **options},
    ).frames  # fmt: skip


def hunyuan_pipe() -> Any:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, transformer=CASES["hunyuan"].build(), vae=vae.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hunyuan_frames(pipe: Any) -> Any:
    return pipe(
        prompt_embeds=models.draw(1, 7, 8), pooled_prompt_embeds=models.draw(1, 8),
        prompt_attention_mask=models.mask(7, 4), negative_prompt_embeds=models.draw(1, 7, 8) * -1,
        negative_pooled_prompt_embeds=models.draw(1, 8), negative_prompt_attention_mask=models.mask(7, 6),
        true_cfg_scale=3.0, output_type="pt", generator=torch.Generator().manual_seed(0), **CLIP,
    ).frames  # fmt: skip


def test_wan_generates_frames(calls: Calls) -> None:
    pipe = wan_pipe()
    dense = wan_frames(pipe)
    with enable(pipe, SPEC):
        frames = wan_frames(pipe)
    assert frames.shape == dense.shape == (1, 5, 3, 32, 48)
    assert frames.isfinite().all()
    assert not torch.equal(frames, dense)
    assert len(calls) == 3 * 2 * 2  # steps, guidance, layers
    assert {call["stream"] for call in calls} == {moc.Stream((moc.Segment("video", grid=GRID),))}
    assert torch.equal(wan_frames(pipe), dense)


def test_hunyuan_generates_frames(calls: Calls) -> None:
    pipe = hunyuan_pipe()
    dense = hunyuan_frames(pipe)
    with enable(pipe, SPEC, dense_steps=1):
        frames = hunyuan_frames(pipe)
    assert frames.shape == dense.shape == (1, 5, 3, 32, 48)
    assert frames.isfinite().all()
    assert not torch.equal(frames, dense)
    assert {call["stream"] for call in calls} == {moc.Stream((moc.Segment("video", grid=GRID), moc.Segment("text", 7)))}
    assert [call["key_lengths"].tolist() for call in calls[::2]] == [[[12, 4]], [[12, 6]]] * 2
    assert torch.equal(hunyuan_frames(pipe), dense)


@pytest.mark.parametrize(
    ("dense_steps", "routed"),
    [(0, {0, 1, 2}), (1, {1, 2}), (3, set()), ((0, 2), {1}), (lambda step: step % 2 == 1, {0, 2})],
)
def test_dense_steps_are_steps_of_the_run_whatever_the_calls(dense_steps: Any, routed: set[int], calls: Calls) -> None:
    pipe = wan_pipe()
    at: list[Any] = []  # the step of each pass
    with enable(pipe, SPEC, dense_steps=dense_steps) as handle:
        pipe.transformer.register_forward_hook(lambda *_: at.append((handle.step, len(calls))))
        for _ in range(2):  # a second run begins again
            at.clear()
            calls.clear()
            wan_frames(pipe)
            assert [step for step, _ in at] == [0, 0, 1, 1, 2, 2]
            made = [after - before for before, after in zip([0, *(n for _, n in at)], (n for _, n in at), strict=False)]
            assert made == [2 if step in routed else 0 for step in (0, 0, 1, 1, 2, 2)]


def test_all_steps_dense_is_dense_bit_for_bit() -> None:
    pipe = wan_pipe()
    dense = wan_frames(pipe)
    with enable(pipe, SPEC, dense_steps=lambda step: True):
        assert torch.equal(wan_frames(pipe), dense)


def test_both_transformers_of_a_pipeline_share_the_step(calls: Calls) -> None:
    pipe = wan_pipe(transformers=2)
    used: list[str] = []
    with enable(pipe, SPEC, dense_steps=2, per_layer={0: None}) as handle:
        assert handle.layers == tuple(
            f"{name}.{layer}" for name in ("transformer", "transformer_2") for layer in models.SELF
        )
        for name in ("transformer", "transformer_2"):
            getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: used.append(name))
        wan_frames(pipe, num_inference_steps=4)
    assert used == ["transformer"] * 4 + ["transformer_2"] * 4
    assert len(calls) == 2 * 2  # two steps, guidance, one layer


def test_a_scheduler_put_in_later_is_followed(calls: Calls) -> None:
    pipe = wan_pipe()
    with enable(pipe, SPEC, dense_steps=2) as handle:
        wan_frames(pipe)
        first = pipe.scheduler
        pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(first.config, use_flow_sigmas=True)
        calls.clear()
        wan_frames(pipe)
        assert type(first).__mro__[1] is not type(pipe.scheduler).__mro__[1]
        assert type(first) is diffusers.FlowMatchEulerDiscreteScheduler
        assert handle.step == 3
    assert type(pipe.scheduler) is diffusers.UniPCMultistepScheduler
    assert len(calls) == 2 * 2


def test_a_watched_scheduler_is_as_it_was() -> None:
    pipe = wan_pipe()
    scheduler = pipe.scheduler
    config, signature = dict(scheduler.config), inspect.signature(scheduler.set_timesteps)
    with enable(pipe, SPEC, dense_steps=2) as handle:
        assert isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
        assert type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
        assert dict(scheduler.config) == config
        assert inspect.signature(scheduler.set_timesteps) == signature
        scheduler.set_timesteps(5)
        assert handle.step == 0
        twin = copy.deepcopy(scheduler)
        twin.set_timesteps(5)
        twin.step(torch.zeros(1), twin.timesteps[0], torch.zeros(1))
        assert handle.step == 0
        scheduler.step(torch.zeros(1), scheduler.timesteps[0], torch.zeros(1))
        assert handle.step == 1
    assert type(scheduler) is diffusers.FlowMatchEulerDiscreteScheduler
    assert not [name for name in vars(scheduler) if "sparsemoc" in name]


def test_two_handles_watch_one_scheduler() -> None:
    one = wan_pipe()
    other = wan_pipe(scheduler=one.scheduler)
    with enable(one, SPEC, dense_steps=1) as handle, enable(other, SPEC, dense_steps=2) as second:
        wan_frames(one)
        assert (handle.step, second.step) == (3, 3)
        handle.remove()
        wan_frames(other, num_inference_steps=2)
        assert (handle.step, second.step) == (3, 2)
    assert type(one.scheduler) is diffusers.FlowMatchEulerDiscreteScheduler


def test_steps_count_where_the_scheduler_has_no_number_and_where_it_starts_late() -> None:
    pipe = wan_pipe(scheduler=diffusers.CogVideoXDDIMScheduler())
    with enable(pipe, SPEC, dense_steps=1) as handle:
        pipe.scheduler.set_timesteps(4)
        for number, t in enumerate(pipe.scheduler.timesteps):
            assert handle.step == number
            pipe.scheduler.step(torch.zeros(1), t, torch.zeros(1))
    pipe = wan_pipe()
    with enable(pipe, SPEC, dense_steps=1) as handle:
        pipe.scheduler.set_timesteps(6)
        pipe.scheduler.set_begin_index(3)
        for number, t in enumerate(pipe.scheduler.timesteps[3:]):
            assert handle.step == number
            pipe.scheduler.step(torch.zeros(1), t, torch.zeros(1))
            if number == 1:  # some pipelines take a step twice, and set the number back in between
                pipe.scheduler._step_index -= 1
                pipe.scheduler.step(torch.zeros(1), t, torch.zeros(1))


def test_a_compiled_pipeline_has_one_graph_for_dense_steps_and_one_for_the_others() -> None:
    counter = import_module("torch._dynamo.testing").CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    pipe = wan_pipe()
    with enable(pipe, SPEC, dense_steps=1):
        expected = wan_frames(pipe)
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend=counter)
        for _ in range(2):
            torch.testing.assert_close(wan_frames(pipe), expected, rtol=0, atol=1e-5)
    assert counter.frame_count == 2


def test_a_loop_of_ones_own_says_the_step(calls: Calls) -> None:
    model = CASES["wan"].build()
    with torch.no_grad(), enable(model, SPEC, dense_steps=1) as handle:
        assert handle.step is None
        with pytest.raises(moc.SpecError, match=r"denoising step must be known.*handle\.step = 0"):
            model(**CASES["wan"].inputs())
        for step in range(3):
            handle.step = step
            model(**CASES["wan"].inputs())
        with pytest.raises(moc.SpecError, match=r"handle\.step must be a whole number >= 0, got -1"):
            handle.step = -1
    assert len(calls) == 2 * 2
