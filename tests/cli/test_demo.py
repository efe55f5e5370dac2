from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsemoc.cli import recall
from sparsemoc.cli.demo import default_spec, fitted
from sparsemoc.cli.features import make_tokens
from sparsemoc.spec.plan import plan
from sparsemoc.spec.serial import load_spec
from sparsemoc.video import shots as video_shots
from tests.cli.conftest import RunCommand, write_video

pytest.importorskip("av", reason="the demo needs PyAV, of the extra demo")
pytest.importorskip("matplotlib", reason="the demo needs matplotlib, of the extra demo")

SPEC = 'top_k = 2\nanchors = ["text", "frame"]\n[chunks]\nsize = 54\nalign = "frame"\n'


def small_shots(path: Path) -> list[video_shots.Shot]:
    return video_shots.read_shots(path, 64, 1, lambda count: None)


def test_end_to_end(run: RunCommand, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("demo", "--video", video, "--out", out, "--heads", 2, "--head-dim", 16, "--backend", "reference")
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text())
    assert [shot["grid"] for shot in summary["shots"]] == [[4, 12, 18], [4, 12, 18]]
    assert summary["tokens"] == 2 * (4 * 12 * 18 + 8)
    assert summary["chunks"]["count"] == 2 * (4 * 4 + 1)
    assert 0 < summary["density"] < 1
    assert summary["flops"]["dense"] == 4 * summary["tokens"] ** 2 * 2 * 16
    assert summary["flops"]["attention"] == 4 * summary["pairs"] * 16
    shares = summary["recall"]
    assert 0 < shares["anchors"] <= shares["random"] <= shares["kept"] <= shares["best"] <= 1
    assert summary["oracle"]["largest"] < 1e-4
    assert summary["oracle"]["same_routes"] > 0.9
    assert summary["dense"]["measured"] == pytest.approx(1)
    matrix = np.array(summary["shot_matrix"])
    assert matrix.shape == (2, 2)
    assert (np.diag(matrix) == 0).all(), "the own shot is an anchor"
    assert load_spec(out / "spec.json").stream is not None
    assert {path.name for path in out.iterdir()} == set(summary["files"])
    assert (out / "routing_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "retrieval_1.png").exists()
    assert "34 chunks, 8 to 54 tokens each" in result.output
    for text in ("tokens", "density", "FLOPs", "dense mass recalled", "error against oracle", "time of dense", "Note:"):
        assert text in result.output


def test_files_become_shots_and_a_spec_gets_their_stream(run: RunCommand, tmp_path: Path) -> None:
    first = write_video(tmp_path / "first.mp4", scenes=1, frames=8)
    second = write_video(tmp_path / "second.mp4", scenes=1, frames=8, width=64, height=64)
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    out = tmp_path / "out"
    result = run("demo", "--video", first, second, "--spec", spec, "--out", out, "--heads", 1, "--backend", "reference")
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text())
    assert [shot["label"] for shot in summary["shots"]] == ["first", "second"]
    written = load_spec(out / "spec.json")
    assert written.top_k == 2
    assert written.stream is not None
    assert [s.grid for s in written.stream.segments if s.grid] == [(2, 12, 18), (2, 12, 12)]


@pytest.mark.parametrize(
    "text",
    [
        'causal = "token"\nunit = {block = 8}\nanchors = [{window = {n = 9}}, {first = {n = 3}}]\n',
        'routable = ["text", "video"]\ndense_queries = []\nanchors = []\ndropout = {off = 0.5, into = 1.0}\n',
        'dense_queries = ["text", "video"]\n',
        "top_k = 0\n",
    ],
)
def test_any_spec_runs(run: RunCommand, tmp_path: Path, text: str) -> None:
    video = write_video(tmp_path / "video.mp4", scenes=1, frames=4, width=64, height=64)
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    spec.write_text(text + "[chunks]\nsize = 30\n")
    result = run("demo", "--video", video, "--spec", spec, "--out", out, "--heads", 1, "--backend", "reference")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "summary.json").read_text())["oracle"]["largest"] < 1e-4


def test_missing_file(run: RunCommand, tmp_path: Path) -> None:
    line = run.fails("demo", "--video", tmp_path / "none.mp4", "--out", tmp_path / "out")
    assert "none.mp4 does not exist. Hint: check the path given to --video." in line


def test_a_missing_file_is_told_before_anything_is_begun(run: RunCommand, video: Path, tmp_path: Path) -> None:
    result = run("demo", "--video", video, tmp_path / "none.mp4", "--out", tmp_path / "out")
    assert result.output.splitlines() == [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert not (tmp_path / "out").exists()


def test_not_a_video(run: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("these are words")
    line = run.fails("demo", "--video", path, "--out", tmp_path / "out")
    assert "notes.mp4 cannot be read as video: " in line
    assert "Hint: " in line
    assert run("demo", "--video", path, "--out", tmp_path / "out").output == line + "\n", "no bar stays above it"


def test_too_short(run: RunCommand, tmp_path: Path) -> None:
    path = write_video(tmp_path / "blink.mp4", scenes=1, frames=2)
    line = run.fails("demo", "--video", path, "--out", tmp_path / "out")
    assert "must hold at least 4 frames (one latent frame), got 2." in line


@pytest.mark.parametrize("module", ["av", "matplotlib"])
def test_missing_extra(
    run: RunCommand, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = run.fails("demo", "--video", video, "--out", tmp_path / "out")
    assert "must be installed" in line
    assert 'Hint: pip install "sparsemoc[demo]", or pip install ".[demo]" in a checkout.' in line


def test_missing_clips(run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = run.fails("demo", "--out", tmp_path / "out")
    assert line.endswith(
        'Hint: pip install "sparsemoc[demo]", or pip install ".[demo]" in a checkout; `sparsemoc demo` '
        "also takes files of your own with --video FILE."
    )


def test_a_spec_that_does_not_fit(run: RunCommand, video: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC + '[[stream.segments]]\nkind = "video"\ngrid = [2, 3, 4]\n')
    line = run.fails("demo", "--video", video, "--spec", spec, "--out", tmp_path / "out")
    assert "--spec must hold no stream, or exactly the video's (1744 tokens" in line
    assert "got 24 tokens, 1 segments, grids (2, 3, 4). Hint: leave `stream` out of the file" in line


def test_top_k_for_other_heads(run: RunCommand, video: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text("top_k = [1, 2, 3]\n")
    line = run.fails("demo", "--video", video, "--spec", spec, "--out", tmp_path / "out", "--heads", 2)
    assert line.endswith("demo: --heads must be 3, for the spec has one top_k per head, got 2. Hint: --heads 3.")


def test_a_backend_that_is_not_there(run: RunCommand, video: Path, tmp_path: Path) -> None:
    line = run.fails("demo", "--video", video, "--backend", "foo", "--out", tmp_path / "out")
    assert line.startswith('Error: demo: backend must be "auto", ')
    assert "got 'foo'" in line


def test_a_folder_that_cannot_be_written(run: RunCommand, video: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = run.fails("demo", "--video", video, "--out", tmp_path / "file" / "out")
    assert "must be a folder that can be written" in line


def test_cuts_are_found_where_they_are(video: Path) -> None:
    shots = small_shots(video)
    assert [shot.start for shot in shots] == [0, 16]
    assert shots[1].frame_of(2)[0] == 24


def test_a_still_picture_has_no_cut() -> None:
    frames = np.full((20, video_shots.PATCH * 12, video_shots.PATCH * 12, 3), 90, np.uint8)
    assert video_shots.shot_bounds(frames) == [0, 20]


def test_features_repeat_exactly(video: Path) -> None:
    shots = small_shots(video)
    first, second = make_tokens(shots, 2, 32), make_tokens(shots, 2, 32)
    for name in ("q", "k", "v", "salience"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert np.isfinite(first.q).all()


def test_patches_attract_patches_that_look_alike(video: Path) -> None:
    tokens = make_tokens(small_shots(video), 1, 64)
    made = plan(fitted(None, tokens.stream)).samples[0]
    start = tokens.stream.bounds[1]
    weights = recall.softmax(recall.logits(tokens, start + 300, slice(0, made.k_tokens)))[0]
    lo, hi = tokens.stream.bounds[1], tokens.stream.bounds[2]
    assert weights[lo:hi].sum() > 0.9, "the other scene has other colours"


def test_one_shot_keeps_its_frame_as_anchor(video: Path) -> None:
    tokens = make_tokens(small_shots(video)[:1], 1, 16)
    assert default_spec(tokens.stream).anchors == ("text", "frame")
