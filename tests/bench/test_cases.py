from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import sparsemoc as moc

ROOT = Path(__file__).resolve().parents[2]

FIELDS = (
    "spec",
    "density",
    "pair_ratio",
    "backend",
    "config",
    "dtype",
    "threads",
    "rounds",
    "seconds",
    "useful_flops",
    "gflops",
    "refcheck",
    "cpu",
    "versions",
    "commit",
    "time",
    "case",
    "mode",
    "checks",
    "quick",
)


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench is no part of the package: it is imported from the root of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return import_module("bench.cpu.cases")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        # 16,320 queries see 64 text keys, 2,040 of their shot and two chunks of 255; 64 text queries see 16,384.
        ("shots-d64", 16320 * (64 + 2040 + 2 * 255) + 64 * 16384),
        # 1,984 queries see 64 text keys, 248 of their shot and two chunks of 31; 64 text queries see 2,048.
        ("short", 1984 * (64 + 248 + 2 * 31) + 64 * 2048),
        # Every query sees eight chunks of 128.
        ("random-d64", 16384 * 8 * 128),
    ],
)
def test_kept_pairs_equal_those_counted_by_hand(cases: ModuleType, name: str, kept: int) -> None:
    case = cases.CASES[name]
    q, k = cases.normal(cases.dataclasses.replace(case, heads=1, head_dim=4), 2)
    layout = moc.route(q, k, case.spec())
    assert layout.pairs() == kept
    assert 1 / layout.density() == pytest.approx(case.tokens**2 / kept)


def test_shots_keep_their_length_as_the_stream_grows(cases: ModuleType) -> None:
    case = cases.CASES["long"]
    for tokens in case.sizes:
        stream = case.at(tokens).stream()
        shots = [segment.tokens for segment in stream.segments if segment.kind == "video"]
        assert stream.tokens == tokens
        assert 2000 < min(shots) <= max(shots) < 2100
        assert max(shots) - min(shots) <= 1


def test_quick_mode_writes_whole_records(backend: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "lines.jsonl"
    done = _run("--quick", "--case", "shots-d64", "short", "--backend", backend, "--out", str(out))
    assert done.returncode == 0, done.stderr + done.stdout
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(record["case"], record["mode"]) for record in records] == [
        ("shots-d64", "forward"),
        ("shots-d64", "gradients"),
        ("short", "forward"),
    ]
    for record in records:
        assert not set(FIELDS) - set(record)
        assert set(record["seconds"]["ours"]) == {"median", "p20", "p80"}
        assert moc.RoutingSpec.from_json(json.dumps(record["spec"])).stream is not None
        assert record["refcheck"]["out"]["error"] <= record["refcheck"]["out"]["budget"]
    assert set(records[1]["refcheck"]["small_copy"]) >= {"dq", "dk", "dv"}


def test_memory_and_growth_of_a_tiny_stream(backend: str, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    done = _run("--quick", "--case", "long", "--backend", backend, "--out", str(out))
    assert done.returncode == 0, done.stderr + done.stdout
    *growth, memory = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["tokens"] for record in growth] == [512, 1024]
    assert memory["bytes"]["arrays"] == 4 * 512 * 2 * 64 * 4
    assert memory["bytes"]["peak"] > memory["bytes"]["baseline"] > 0


def test_a_wrong_result_is_refused(cases: ModuleType) -> None:
    refcheck = import_module("bench.refcheck")
    case = cases.CASES["short"].shrunk(256, 1)
    given = cases.inputs(case)
    out, layout = moc.attention(given.q, given.k, given.v, case.spec(), return_layout=True)
    asked = refcheck.Question(case.name, case.spec(), given)
    refcheck.check(asked, layout.selected, {"out": out}, rows=8)
    with pytest.raises(refcheck.RefcheckError, match="out is off by"):
        refcheck.check(asked, layout.selected, {"out": out * 1.001}, rows=8)
    worse = moc.route(-given.q, given.k, case.spec())
    with pytest.raises(refcheck.RefcheckError, match="lower score"):
        refcheck.check(asked, worse.selected, {"out": out}, rows=8)


def test_an_absent_backend_is_an_error() -> None:
    done = _run("--quick", "--backend", "abacus")
    assert done.returncode == 2
    assert "abacus" in done.stdout


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.cpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
