"""The crossover benchmark: its grid, what it keeps and ships, and what it says of a budget that is too small."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.tuning import crossover_store, shipped
from sparsemoc.tuning.problems import arrays

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The command, with a cache, data and results of the test's own."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "data_folder", lambda: tmp_path / "data")
    made = import_module("bench.crossover.cli")
    monkeypatch.setattr(made, "DATA", tmp_path / "data")
    peaks = import_module("bench.roofline").Peaks(1e12, 1e11, "made")
    monkeypatch.setattr("bench.crossover.measure.peaks", lambda *_: peaks)  # to measure them takes a second
    monkeypatch.setattr(made.record, "default_out", lambda folder, name: tmp_path / folder / "today.jsonl")
    return made


@pytest.fixture
def fake(cli: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Lengths are not measured: ours takes 512 / tokens + density of dense attention's time, and a call 1 ms at 256."""
    told: dict[str, Any] = {"dense": "torch sdpa flash", "reason": None, "asked": []}
    measure = import_module("bench.crossover.measure")
    point = import_module("sparsemoc.tuning.crossover").Point

    def measured(problems: Any, how: Any, dense: Any) -> Any:
        tokens = problems[0].tokens
        told["asked"].append((tokens, dense))
        points = {f"crossover/{tokens}/{k}": point(tokens, k / 32, 1 / (512 / tokens + k / 32)) for k in (1, 8, 32)}
        seconds = dict.fromkeys([*points, "torch sdpa flash"], 1e-3 * (tokens / 256) ** 2)
        record = {"problem": f"crossover/{tokens}/1", "contender": how.backend.name, "reason": told["reason"]}
        return measure.Measured(
            tokens=tokens, points=points if told["dense"] else {}, seconds=seconds, dense=told["dense"],
            candidates=("torch sdpa flash",), spent=4.0, records=(record,),
        )  # fmt: skip

    monkeypatch.setattr(cli, "measured", measured)
    return told


def environment(cli: ModuleType) -> Any:
    asked = cli.parser().parse_args([])
    _, found = cli._how(asked, "")
    return found


def test_the_grid_goes_from_a_thirty_second_of_the_pairs_to_all(cli: ModuleType) -> None:
    problems = cli.grid.problems(512, 2, 16)
    assert [problem.name for problem in problems] == [
        *(f"crossover/512/{top_k}" for top_k in (1, 2, 4, 8, 16, 32)), "crossover/512/shots",
    ]  # fmt: skip
    given = arrays(problems[0])
    layouts = [moc.route(given.q, given.k, problem.spec) for problem in problems]
    assert [layout.density() for layout in layouts[:-1]] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    # Of 8 shots, with 4 tokens of text that see everything: 63 or 64 own keys, 4 of the text, 3 chunks of 7 or 8.
    assert layouts[-1].density() == pytest.approx((4 * 512 + 508 * (4 + 63.5 + 3 * 7.94)) / 512**2, rel=0.01)
    for problem in problems:
        assert (problem.tokens, problem.heads, problem.head_dim) == (512, 2, 16)


def test_quick_measures_checks_and_keeps_nothing(
    cli: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="dense attention")
    monkeypatch.setattr(cli, "QUICK_LENGTHS", (64, 128))
    monkeypatch.setattr(cli, "QUICK_PACE", cli.Pace(rounds=2, turn=1e-4, long=0.05))
    out = tmp_path / "records.jsonl"
    assert cli.main(["--quick", "--heads", "1", "--head-dim", "16", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    records = list(import_module("bench.report.records").read([out]))
    ours = [record for record in records if record["kind"] == "backend"]
    assert [record["problem"] for record in ours] == [
        problem.name for tokens in (64, 128) for problem in cli.grid.problems(tokens, 1, 16)
    ]
    for record in ours:
        assert record["refcheck"]["routes"] == "equal"
        assert record["refcheck"]["out"]["error"] <= record["refcheck"]["out"]["budget"]
        assert set(record["config_source"]) == {"pool", "route", "attend"}
        assert record["dense"]["contender"] in ("torch sdpa flash", "torch sdpa math")
        assert record["dense"]["speedup"]["median"] > 0
        assert record["roofline"]["share"] == pytest.approx(
            record["useful_flops"]
            / record["seconds"]["median"]
            / min(1e12, 1e11 * record["useful_flops"] / record["useful_bytes"])
        )
        assert record["quick"]
    dense = {record["contender"]: record for record in records if record["kind"] == "peer" and record["tokens"] == 64}
    assert dense["torch sdpa flash"]["refcheck"]["routes"] == "all keys"
    assert dense["torch sdpa flash"]["density"] == 1
    assert dense["torch sdpa cuDNN"]["reason"] == "skipped: needs a CUDA device" or dense["torch sdpa cuDNN"]["seconds"]
    speedups = {record["problem"]: record["dense"]["speedup"]["median"] for record in ours}
    (shots,) = (record for record in ours if record["problem"] == "crossover/128/shots")
    for shown in (
        f"{speedups['crossover/128/1']:.3g}",
        f"{speedups['crossover/64/shots']:.3g}",
        "100 %",
        f"{100 * shots['density']:.3g} % shots",
    ):
        assert shown in printed
    assert "not kept: the figures of --quick mean nothing" in printed
    assert not (tmp_path / "cache" / "crossover").exists()


def test_what_is_measured_is_kept_and_shipped(
    cli: ModuleType, fake: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--ship", "--rounds", "2"]) == 0
    here = environment(cli)
    (found,) = crossover_store.load(here)
    assert found.lengths == (256, 512, 1024, 2048, 4096, 8192, 16384)
    assert found.speedup(2048, 0.25) == pytest.approx(2, rel=1e-3)
    assert (found.backend, found.dtype, found.head_dim, found.heads) == ("numba", "float32", 64, 4)
    assert (found.device, found.architecture, found.dense) == (here.device, here.architecture, "torch sdpa flash")
    assert found.command == "python -m bench.crossover --ship --rounds 2"
    file = tmp_path / "data" / here.architecture / "numba.crossover.json"
    assert json.loads(file.read_text())["crossovers"] == [found.to_dict()]
    printed = capsys.readouterr().out
    assert f"kept for `sparsemoc explain` in {crossover_store.place(here)}" in printed
    assert f"shipped in {file}" in printed
    lines = (tmp_path / "crossover" / "today.jsonl").read_text().splitlines()
    assert [json.loads(line)["problem"] for line in lines] == [f"crossover/{n}/1" for n in found.lengths]
    # Dense attention is as fast where 512 / tokens = 1 - density: at 529 and at 683 tokens; with all pairs nowhere.
    for sentence in (
        f"dense attention is faster below {found.length(1 / 32):,} tokens at 3.12 % density",
        f"dense attention is faster below {found.length(1 / 4):,} tokens at 25 % density",
        "dense attention is faster at 100 % density, up to the longest measured, 16,384 tokens",
    ):
        assert sentence in printed
    assert 500 < (found.length(1 / 32) or 0) < 540
    assert 660 < (found.length(1 / 4) or 0) < 710


def test_dense_attentions_that_are_hopeless_are_left_out_of_longer_lengths(
    cli: ModuleType, fake: dict[str, Any]
) -> None:
    cli.main(["--longest", "1024"])
    assert fake["asked"] == [(256, None), (512, ("torch sdpa flash",)), (1024, ("torch sdpa flash",))]


def test_a_length_that_the_budget_has_no_room_for_is_skipped(
    cli: ModuleType, fake: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "foreseen", lambda last, tokens, how: 1000.0 if tokens > 1024 else 0.0)
    assert cli.main(["--budget-s", "500"]) == 0
    assert [tokens for tokens, _ in fake["asked"]] == [256, 512, 1024]
    printed = capsys.readouterr().out
    for tokens in ("2,048", "16,384"):
        assert f"skipped: {tokens} tokens takes about 1e+03 s, 500 s of --budget-s are left" in printed
    (found,) = crossover_store.load(environment(cli))
    assert found.lengths == (256, 512, 1024)


def test_calls_are_foreseen_to_grow_with_the_square_and_checks_with_the_length(
    cli: ModuleType, fake: dict[str, Any]
) -> None:
    asked = cli.parser().parse_args(["--rounds", "3"])
    how, _ = cli._how(asked, "")
    last = cli.measured(cli.grid.problems(4096, 1, 64), how, None)  # four calls of 0.256 s
    needed: Callable[[float], float] = how.pace.needed
    # 4 s were spent: what the calls do not explain are the checks.
    wanted = 4 * needed(4 * 0.256) + 2 * max(0.0, 4.0 - 4 * needed(0.256))
    assert cli.foreseen(last, 8192, how) == pytest.approx(wanted)
    slower = dataclasses.replace(last, spent=100.0)
    assert cli.foreseen(slower, 8192, how) == pytest.approx(4 * needed(4 * 0.256) + 2 * (100.0 - 4 * needed(0.256)))
    assert wanted > 4 * 3 * 4 * 0.256, "three rounds of four calls"


def test_a_wrong_result_is_said_and_fails(
    cli: ModuleType, fake: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fake["reason"] = "wrong: out is off"
    assert cli.main([]) == 1
    assert "crossover/256/1, numba: wrong: out is off" in capsys.readouterr().out


def test_no_dense_attention_means_no_crossover(
    cli: ModuleType, fake: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fake["dense"] = None
    assert cli.main([]) == 2
    assert [tokens for tokens, _ in fake["asked"]] == [256], "longer ones would tell no more"
    assert "no crossover: there is no length with two densities" in capsys.readouterr().out
    assert crossover_store.load(environment(cli)) == ()


def test_a_wrong_output_gives_no_point(cli: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="dense attention")
    how, _ = cli._how(cli.parser().parse_args(["--quick", "--heads", "1", "--head-dim", "16"]), "")
    attention = moc.attention

    def slightly_off(q: Any, k: Any, v: Any, spec: Any, **more: Any) -> Any:
        found = attention(q, k, v, spec, **more)
        if spec.top_k != 4:
            return found
        return (found[0] * np.float32(1.001), *found[1:]) if isinstance(found, tuple) else found * np.float32(1.001)

    monkeypatch.setattr(moc, "attention", slightly_off)
    found = import_module("bench.crossover.measure").measured(cli.grid.problems(64, 1, 16), how, ("torch sdpa flash",))
    reasons = {record["problem"]: record["reason"] for record in found.records if record["kind"] == "backend"}
    assert reasons.pop("crossover/64/4").startswith("wrong: crossover/64/4: out is off by ")
    assert set(reasons.values()) == {None}
    assert "crossover/64/4" not in found.points
    assert len(found.points) == 6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--backend", "nunba"], 'bench.crossover: backend must be "auto", '),
        (["--head-dim", "512"], "bench.crossover: numba takes head_dim up to 256, not 512"),
    ],
)
def test_a_wish_that_cannot_be_met(
    cli: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert cli.main(arguments) == 2
    assert text in capsys.readouterr().out


def test_quick_figures_are_not_shipped(cli: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--quick", "--ship"])
    assert "--ship: the figures of --quick mean nothing and are not shipped" in capsys.readouterr().err


def test_explain_finds_what_was_kept(cli: ModuleType, fake: dict[str, Any], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from sparsemoc.cli import main

    assert cli.main([]) == 0
    path = tmp_path / "spec.toml"
    path.write_text("top_k = 8\nanchors = []\n[chunks]\nsize = 32\n")
    printed = CliRunner().invoke(main, ["explain", str(path), "--tokens", "1024", "--backend", "numba"]).output
    # 512 / 1,024 + 8 / 32.
    assert "1.3 x as fast as dense attention is expected: 1,024 tokens at 25 % density" in " ".join(
        printed.replace("│", " ").split()
    )
