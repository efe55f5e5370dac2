"""The training example at a tiny size: it learns, it resumes bit for bit, and it draws what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from sparsemoc.examples.train_dit.__main__ import main
from sparsemoc.examples.train_dit.settings import Settings

torch = pytest.importorskip("torch", reason="the example needs torch")
pytest.importorskip("diffusers", reason="the example needs diffusers")
pytest.importorskip("av", reason="the example needs PyAV, of the extra demo")
pytest.importorskip("matplotlib", reason="the example needs matplotlib, of the extra demo")
checkpoint: Any = import_module("sparsemoc.examples.train_dit.checkpoint")
errors: Any = import_module("sparsemoc.examples.train_dit.errors")
flow: Any = import_module("sparsemoc.examples.train_dit.flow")
footage_module: Any = import_module("sparsemoc.examples.train_dit.footage")
pictures: Any = import_module("sparsemoc.examples.train_dit.pictures")
report: Any = import_module("sparsemoc.examples.train_dit.report")
run: Any = import_module("sparsemoc.examples.train_dit.run")
Trainer: Any = import_module("sparsemoc.examples.train_dit.trainer").Trainer

#: Eight tokens to a frame, two frames to a shot, 64 in all.
TINY = Settings(
    steps=12, frames=2, height=16, width=32, layers=1, heads=2, chunk_sizes=(16, 8, 4), validate_every=5, sample_steps=2
)


@pytest.fixture(scope="module")
def footage() -> Any:
    return footage_module.Footage(TINY)


def trained(mode: str, footage: Any, steps: int = TINY.steps) -> Any:
    trainer = Trainer(mode, TINY, footage, "cpu")
    for _ in range(steps):
        trainer.train_step()
    return trainer


@pytest.fixture(scope="module")
def trainers(footage: Any) -> dict[str, Any]:
    return {mode: trained(mode, footage) for mode in ("dense", "moc")}


def losses(trainer: Any) -> list[float]:
    return [record["loss"] for record in trainer.records]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    return result.output.splitlines()[-1]


@pytest.mark.parametrize("mode", ["dense", "moc"])
def test_the_held_out_loss_falls(mode: str, trainers: dict[str, Any]) -> None:
    held = [record["validation"] for record in trainers[mode].records if "validation" in record]
    assert [record["step"] for record in trainers[mode].records if "validation" in record] == [0, 4, 9, 11]
    assert held[-1] < 0.8 * held[0]
    assert all(np.isfinite(losses(trainers[mode])))


def test_both_start_from_the_same_weights_and_batches(trainers: dict[str, Any], footage: Any) -> None:
    fresh = {mode: Trainer(mode, TINY, footage, "cpu") for mode in ("dense", "moc")}
    weights = [dict(trainer.model.named_parameters()) for trainer in fresh.values()]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # The output layer starts at zero: the first loss does not see attention, the later ones do.
    assert losses(trainers["dense"])[0] == pytest.approx(losses(trainers["moc"])[0], rel=1e-6)
    assert losses(trainers["dense"])[-1] != pytest.approx(losses(trainers["moc"])[-1], rel=1e-5)


def test_the_loss_is_that_of_the_velocity(footage: Any) -> None:
    clips = footage.training(torch.Generator().manual_seed(1))
    noise, t = torch.randn(clips.latents.shape), torch.tensor([0.25])
    guess = torch.full_like(noise, 0.5)
    seen: dict[str, Any] = {}

    def model(**inputs: Any) -> tuple[Any]:
        seen.update(inputs)
        return (guess,)

    found = flow.loss(model, clips, noise, t)
    x = 0.75 * clips.latents + 0.25 * noise
    expected = (((x - guess) / 0.25 - (noise - clips.latents)) ** 2).mean()
    torch.testing.assert_close(found, expected)
    assert torch.equal(seen["hidden_states"], torch.cat([x, clips.condition], dim=1))
    assert seen["timestep"].tolist() == [250]


def test_sampling_follows_a_straight_path_to_its_end(footage: Any) -> None:
    clips = footage.validation()
    noise = torch.randn(clips.latents.shape)

    class Knowing:
        def eval(self) -> None:
            pass

        def __call__(self, **inputs: Any) -> tuple[Any]:
            return (clips.latents,)

    found = flow.sample(Knowing(), noise, clips.condition, 3)
    torch.testing.assert_close(found, clips.latents, rtol=0, atol=1e-5)


def test_times_are_shifted_towards_noise() -> None:
    times = flow.shifted(torch.tensor([0.0, 0.5, 1.0]))
    middle = 0.5 * (1 + 0.2 / 3.4)  # of the unshifted times, the first of which is 0.2 once shifted by 4
    torch.testing.assert_close(times, torch.tensor([0.2, 4 * middle / (1 + 3 * middle), 1.0]))


def test_latents_and_back_are_exact(footage: Any) -> None:
    frames = torch.randint(0, 256, (2, 3, 8, 16, 3), dtype=torch.uint8)
    latents = footage_module.encode(frames)
    assert latents.shape == (2, 48, 3, 2, 4)
    assert torch.equal(footage_module.decode(latents), frames)
    assert (float(latents.min()), float(latents.max())) == pytest.approx((-1, 1), abs=0.02)


def test_the_first_scene_comes_back_and_held_out_frames_are_never_trained_on(footage: Any) -> None:
    clips = footage.validation()
    assert clips.scenes == ((0, 1, 2, 0), (1, 2, 3, 1), (2, 3, 0, 2), (3, 0, 1, 3))
    held_out = {bytes(frame.tolist()) for clip in footage_module.decode(clips.latents) for frame in clip.reshape(8, -1)}
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        batch = footage.training(generator)
        assert batch.scenes[0][0] == batch.scenes[0][3]
        assert len(set(batch.scenes[0])) == 3
        frames = footage_module.decode(batch.latents)[0].reshape(8, -1)
        assert held_out.isdisjoint(bytes(frame.tolist()) for frame in frames)


def test_chunks_shrink_at_the_steps_said(trainers: dict[str, Any]) -> None:
    assert [record["chunk_size"] for record in trainers["moc"].records] == [16] * 4 + [8] * 4 + [4] * 4
    assert pictures.stages(trainers["moc"].records) == [(0, 4, 16), (4, 8, 8), (8, 12, 4)]
    assert "chunk_size" not in trainers["dense"].records[0]


def test_route_dropout_is_of_training_alone(footage: Any, trainers: dict[str, Any]) -> None:
    trainer = trainers["moc"]
    assert trainer.validate() == trainer.validate() == trainer.records[-1]["validation"]
    assert trainer.model.training
    others = []
    for seed in (1, 2):
        other = trained("moc", footage, 1)
        torch.manual_seed(seed)
        other.train_step()
        other.train_step()
        others.append(losses(other)[-1])
    assert others[0] != others[1], "no other randomness is left in a step"


def test_the_monitor_counts_what_the_schedule_keeps(trainers: dict[str, Any]) -> None:
    records = [record for record in trainers["moc"].records if "monitor" in record]
    assert [record["step"] for record in records] == [0, 4, 5, 8, 10, 11]
    assert set(records[0]["monitor"]) == {
        f"blocks.0.attn1/{name}" for name in ("density", "load_entropy", "dead_chunks", "dead_share")
    }
    # Without dropout: a quarter for the own shot, and two chunks of 4 for the three later shots of four.
    density = trainers["moc"].routing().summary()["blocks.0.attn1"].density
    np.testing.assert_allclose(density, 1 / 4 + 3 / 4 * 2 * 4 / 64)


@pytest.mark.parametrize("mode", ["dense", "moc"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    mode: str, trainers: dict[str, Any], footage: Any, tmp_path: Path
) -> None:
    console = Console(quiet=True)
    first = trained(mode, footage, 5)
    checkpoint.save(checkpoint.path_of(tmp_path, mode), first.state(), TINY)
    (tmp_path / f"{mode}.jsonl").write_text("a line of a step that was not saved\n")
    torch.manual_seed(99)
    again = Trainer(mode, TINY, footage, "cpu")
    run.train(again, tmp_path, console, resume=True)
    assert losses(again) == losses(trainers[mode])
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, trainers[mode].model.state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / f"{mode}.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == losses(trainers[mode])
    assert not list(tmp_path.glob("*.partial"))


def test_ctrl_c_ends_after_a_whole_step_that_is_saved(footage: Any, tmp_path: Path) -> None:
    import signal

    trainer = Trainer("dense", TINY, footage, "cpu")
    step = trainer.train_step

    def interrupted() -> Any:
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
        return step()

    trainer.train_step = interrupted
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(run.Stopped, match="stopped after 3 of 12 steps of dense"):
        run.train(trainer, tmp_path, Console(quiet=True), resume=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.load(tmp_path / "dense.pt", "dense", TINY)["step"] == 3


def test_pictures_and_summary_are_written(trainers: dict[str, Any], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")
    summary = report.write(list(trainers.values()), tmp_path, Console(quiet=True))
    for name in ("loss.png", "samples.png", "routing.png"):
        with image.open(tmp_path / name) as picture:
            assert picture.width > 600
            assert len(picture.convert("RGB").getcolors(2**24)) > 20, "not blank"
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["tokens"] == 64
    assert summary["models"]["dense"]["kept_pairs"] == 1
    sizes = [stage["chunk_size"] for stage in summary["models"]["moc"]["stages"]]
    kept = [stage["kept_pairs"] for stage in summary["models"]["moc"]["stages"]]
    assert sizes == [16, 8, 4]
    assert 1 > kept[0] > kept[1] > kept[2] > 0.25


def test_the_running_mean_is_geometric_and_begins_as_a_mean() -> None:
    np.testing.assert_allclose(pictures.smoothed([9.0, 1.0, 1.0], kept=0.5), [9.0, 9 ** (1 / 3), 9 ** (1 / 7)])


def test_a_damaged_checkpoint_is_a_clear_error(trainers: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "moc.pt"
    checkpoint.save(path, trainers["moc"].state(), TINY)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"these are words", b""):
        path.write_bytes(damaged)
        with pytest.raises(errors.CheckpointError, match=r"moc.pt must be whole, but reading failed: .* Hint: "):
            checkpoint.load(path, "moc", TINY)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(errors.CheckpointError, match="must be a checkpoint of the moc model, got something else"):
        checkpoint.load(path, "moc", TINY)


def test_a_checkpoint_of_other_settings_is_refused(trainers: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "dense.pt"
    checkpoint.save(path, trainers["dense"].state(), TINY)
    with pytest.raises(errors.CheckpointError, match=r"run of the same settings, got .* of seed=0, steps=12\. Hint: "):
        checkpoint.load(path, "dense", replace(TINY, steps=40, seed=1))


def test_bad_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'tpu' is not one of" in fails("--device", "tpu")
    assert "2 is not in the range" in fails("--steps", 2)
    assert "--resume needs a checkpoint in --out, got none in" in fails("--out", tmp_path, "--resume")
    (tmp_path / "dense.pt").write_bytes(b"")
    assert "--out must hold no earlier run, got" in fails("--out", tmp_path, "--only", "dense")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fails("--device", "cuda").endswith("needs a GPU that torch can use, got none. Hint: --device cpu.")


def test_the_command_trains_and_refuses_to_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "quick", classmethod(lambda cls, seed=0: replace(TINY, seed=seed)))
    result = call("--quick", "--steps", 3, "--only", "moc", "--device", "cpu", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "no claim of quality" in call("--help").output
    assert (tmp_path / "out" / "loss.png").exists()
    again = fails("--quick", "--steps", 3, "--only", "moc", "--out", tmp_path / "out")
    assert "--resume goes on with it, another --out begins anew." in again
    done = call("--quick", "--steps", 3, "--only", "moc", "--device", "cpu", "--resume", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
