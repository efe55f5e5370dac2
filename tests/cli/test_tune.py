"""`sparsemoc tune` and `sparsemoc tuned`: what is measured, reused, skipped, told and kept. Times are made up."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import registry
from sparsemoc.cli import results
from sparsemoc.cli.place import environment_here, place_for
from sparsemoc.tuning import problems, resolve, shipped
from sparsemoc.tuning.outcome import Outcome, Trial
from sparsemoc.tuning.progress import Progress, duration
from sparsemoc.tuning.store import Store
from sparsemoc.tuning.work import Work
from tests.backends.cupy.fake_cupy import installed
from tests.cli.conftest import RunCommand
from tests.tuning.samples import ENVIRONMENT, entry
from tests.tuning.toys import Toy, ToyConfig

#: Seconds of the toy under each tile; 4096 cannot run.
SECONDS = {64: 2e-3, 128: 1e-3, 256: 3e-3}
SIZES = ("--tokens", 64, "--head-dim", 16, "--backend", "toy")


class Search:
    """Stands in for the search: what it measures is in the table."""

    def __init__(self) -> None:
        self.measured: list[str] = []

    def search(self, work: Work, budget_s: float, max_configs: int, progress: Progress) -> Outcome:
        self.measured.append(work.operation)
        space = list(work.backend.search_space(work.problem, work.operation))
        trials = []
        for config in space[:max_configs]:
            seconds = SECONDS.get(config.tile)
            reason = "needs 409600 bytes of shared memory, more than 100000" if seconds is None else None
            trials.append(
                Trial(config=dataclasses.asdict(config), seconds=seconds, p20=seconds, p80=seconds, reason=reason)
            )
            progress.tell(f"{work.operation} tile={config.tile}: {seconds}, 9 s left")
        best = min((trial for trial in trials if trial.seconds is not None), key=lambda trial: trial.seconds or 0)
        assert best.seconds is not None
        return Outcome(
            config=best.config, seconds=best.seconds, default_seconds=SECONDS[64], trials=tuple(trials),
            space=len(space), budget=budget_s, spent=0.1, time=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A backend named toy, as an installed plug-in."""
    made = Toy()

    def entry_points(*, group: str, name: str | None = None) -> list[Any]:
        found = SimpleNamespace(name="toy", load=lambda: made)
        return [found] if group == registry.GROUP and name in (None, "toy") else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    registry._load.cache_clear()
    registry.backend_names.cache_clear()
    yield made
    registry._load.cache_clear()
    registry.backend_names.cache_clear()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(shipped, "data_folder", lambda: tmp_path / "data")
    resolve.forget()
    shipped._records.cache_clear()
    yield tmp_path / "cache"
    resolve.forget()
    shipped._records.cache_clear()


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    made = Search()
    monkeypatch.setattr("sparsemoc.tuning.search.search", made.search)
    return made


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text("top_k = 1\n[chunks]\nsize = 8\n")
    return path


def row(output: str, operation: str) -> list[str]:
    """Return the cells of an operation's row."""
    (line,) = [line for line in output.splitlines() if re.match(rf"[│|] {re.escape(operation)} +[│|]", line)]
    return [cell.strip() for cell in re.split("[│|]", line)[2:-1]]


def test_a_spec_is_tuned_and_later_calls_use_it(
    run: RunCommand, toy: Toy, search: Search, spec: Path, cache: Path
) -> None:
    result = run("tune", spec, *SIZES)
    assert result.exit_code == 0, result.output
    assert search.measured == ["attend"]
    assert row(result.output, "attend") == ["2 ms", "1 ms", "2.00 x", "tile=128", "3 of 4, 1 ruled out"]
    for operation in ("pool", "route"):
        *times, config, why = row(result.output, operation)
        assert (times, config) == (["", "", ""], "the default")
        assert why.startswith("skipped: nothing to tune: ")
    assert "spec.toml, toy on Toy 1: serves 1 head x batch" in result.output
    assert "64 x 64 tokens, 1 x 16 channels, float32 (numpy on cpu)" in result.output
    assert "attend tile=128: 0.001, 9 s left" in result.output, "each config is shown"
    assert "attend: tile=4096: needs 409600 bytes of shared memory, more than 100000" in result.output
    assert f"Written to {cache}/tune/v1." in result.output
    resolve.forget()
    toy.ran.clear()
    q = np.ones((1, 64, 1, 16), np.float32)
    moc.attention(q, q, q, moc.load_spec(spec), backend=toy)
    assert dict(toy.ran) == {"pool": None, "route": None, "attend": ToyConfig(tile=128)}


def test_the_search_itself(run: RunCommand, toy: Toy, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = Toy.attend

    def slow(self: Toy, *given: Any, config: Any = None) -> Any:
        time.sleep(0.0 if config is not None and config.tile == 128 else 0.03)
        return attend(self, *given, config=config)

    monkeypatch.setattr(Toy, "attend", slow)
    result = run("tune", spec, *SIZES, "--budget", 3)
    assert result.exit_code == 0, result.output
    *_, gained, config, tried = row(result.output, "attend")
    assert float(gained.removesuffix(" x")) > 1.2
    assert (config, tried) == ("tile=128", "3 of 4, 1 ruled out")
    assert "tile=4096: needs 409600 bytes of shared memory" in result.output
    assert "Written to" in result.output
    resolve.forget()
    toy.ran.clear()
    result = run("tune", spec, *SIZES, "--budget", 3)
    assert "nothing was measured" in result.output
    assert [name for name, _ in toy.ran] == ["pool", "route", "attend"]


def test_a_second_run_measures_nothing(run: RunCommand, toy: Toy, search: Search, spec: Path) -> None:
    run("tune", spec, *SIZES)
    resolve.forget()  # as in another process
    search.measured.clear()
    result = run("tune", spec, *SIZES)
    assert result.exit_code == 0, result.output
    assert search.measured == []
    assert row(result.output, "attend") == ["2 ms", "1 ms", "2.00 x", "tile=128", "reused, measured under a minute ago"]
    assert "Reused 1 of earlier runs: nothing was measured. --again measures anew." in result.output
    assert "Written" not in result.output
    result = run("tune", spec, *SIZES, "--again")
    assert search.measured == ["attend"]
    assert "Written to" in result.output


def test_gradients_tune_training_steps_too(run: RunCommand, toy: Toy, search: Search, spec: Path) -> None:
    result = run("tune", spec, *SIZES, "--gradients")
    assert result.exit_code == 0, result.output
    assert search.measured == ["attend", "attend", "attend_backward"]
    for operation in ("attend", "attend (gradients)", "attend_backward"):
        assert row(result.output, operation)[:3] == ["2 ms", "1 ms", "2.00 x"]
    assert {(one.key.operation, one.key.gradients) for one in Store().entries()} == {
        ("attend", False), ("attend", True), ("attend_backward", True),
    }  # fmt: skip


def test_a_named_problem_of_fewer_heads(
    run: RunCommand, toy: Toy, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {name: found.shrunk(128, 4) for name, found in problems.PROBLEMS.items()}
    monkeypatch.setattr(problems, "PROBLEMS", small)
    names = ("cogvideox-5b/480p", "decode/new-shot")
    result = run("tune", *(part for name in names for part in ("--problem", name)), "--heads", 2, "--backend", "toy")
    assert result.exit_code == 0, result.output
    keys = [one.key for one in Store().entries()]
    assert {(key.head_dim, key.rows) for key in keys} == {(64, 2), (128, 2)}
    for name in names:
        assert f"{name}: {small[name].queries:,} x {small[name].tokens:,} tokens, 2 x " in result.output
    assert small["decode/new-shot"].queries < small["decode/new-shot"].tokens


def test_problems_that_share_a_key_are_measured_once(
    run: RunCommand, toy: Toy, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = problems.PROBLEMS["moba/32k"].shrunk(128, 1)
    monkeypatch.setattr(problems, "PROBLEMS", {"moba/32k": one, "other": dataclasses.replace(one, name="other")})
    result = run("tune", "--problem", "moba/32k", "--problem", "other", "--backend", "toy")
    assert result.exit_code == 0, result.output
    assert search.measured == ["attend"]
    assert "other: as the problems above, their results serve it." in result.output


def test_what_the_budget_did_not_reach_is_told(
    run: RunCommand, toy: Toy, search: Search, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsemoc.tuning.session.Session.left", 0.0)
    result = run("tune", spec, *SIZES)
    assert result.exit_code == 0, result.output
    assert search.measured == []
    assert row(result.output, "attend")[-1] == "skipped: the budget is used up"
    assert "The budget was too small for all." in result.output


def test_max_configs_is_obeyed(run: RunCommand, toy: Toy, search: Search, spec: Path) -> None:
    result = run("tune", spec, *SIZES, "--max-configs", 1)
    assert row(result.output, "attend") == ["2 ms", "2 ms", "1.00 x", "the default", "1 of 4, 3 not tried"]


def test_mistakes_are_told_in_one_line(run: RunCommand, toy: Toy, spec: Path) -> None:
    assert 'a problem must be given: a SPEC file, or --problem "paper/single-shot"' in run.fails("tune")
    assert 'Did you mean "moba/32k"?' in run.fails("tune", "--problem", "moba/23k")
    assert "--tokens must be given, for the spec has no stream. Hint:" in run.fails("tune", spec)
    assert "--tokens goes with a SPEC file" in run.fails("tune", "--problem", "moba/32k", "--tokens", 9)
    assert "--head-dim goes with a SPEC file" in run.fails("tune", "--problem", "moba/32k", "--head-dim", 64)
    assert 'Did you mean "toy"?' in run.fails("tune", spec, "--tokens", 9, "--backend", "tay")
    assert "'--budget': 0.0 is not in the range x>0." in run.fails("tune", spec, "--tokens", 9, "--budget", 0)
    assert "tune: budget_s must be a positive number" in run.fails("tune", spec, "--tokens", 9, "--budget", "inf")
    spec.write_text("top_k = [1, 2]\n")
    line = run.fails("tune", spec, "--tokens", 9, "--heads", 3)
    assert "tune: --heads must be 2, for the spec has one top_k per head, got 3." in line


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_measured(
    run: RunCommand, toy: Toy, search: Search, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "/proc/self/fdinfo")
    line = run.fails("tune", spec, *SIZES)
    assert line.startswith("Error: tune: /proc/self/fdinfo/tune/v1 cannot be written: ")
    assert line.endswith("Hint: set SPARSEMOC_CACHE_DIR to a folder that can be written.")
    assert search.measured == []


def test_arrays_are_numpys_where_a_backend_takes_them(toy: Toy) -> None:
    assert place_for("toy", "tune") == ("numpy", "cpu")
    assert place_for("toy", "tune").dtype == "float32"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_arrays_of_a_backend_that_takes_tensors_alone(toy: Toy, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="makes tensors")
    toy.capabilities = dataclasses.replace(toy.capabilities, frameworks=("torch",))
    place = place_for("toy", "tune")
    assert place == ("torch", "cpu")
    array = problems.arrays(problems.PROBLEMS["moba/32k"].shrunk(32, 1), dtype).q
    tensor = place.put(array)
    assert tensor.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(tensor.float().numpy(), array.astype(np.float32))


def test_arrays_of_a_backend_that_takes_cupys_alone(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.capabilities = dataclasses.replace(toy.capabilities, frameworks=("cupy",), devices=("cuda",))
    with installed() as cupy:
        cupy.cuda.is_available = lambda: True
        monkeypatch.setattr("sparsemoc.cli.place.find_spec", lambda name: name == "cupy")
        place = place_for("toy", "tune")
        assert (place, place.dtype) == (("cupy", "cuda"), "bfloat16")
        array = np.zeros((2, 3), np.float32)
        np.testing.assert_array_equal(place.put(array).get(), array)
        cupy.cuda.is_available = lambda: False
        with pytest.raises(moc.UnsupportedError, match=r'backend "toy" takes cupy arrays on cuda: there are none such'):
            place_for("toy", "tune")


def test_a_backend_without_any_arrays_here(toy: Toy, run: RunCommand, spec: Path) -> None:
    toy.capabilities = dataclasses.replace(toy.capabilities, frameworks=("warpdrive",))
    line = run.fails("tune", spec, *SIZES)
    assert line == (
        'Error: tune: backend "toy" takes warpdrive arrays on cpu: there are none such here. '
        "Hint: `sparsemoc doctor` shows what is installed."
    )


def kept(toy: Toy) -> None:
    """Put two results into the cache: of this machine, 3 days old, and of another."""
    here = environment_here(toy)
    assert here is not None
    time = (datetime.now(UTC) - timedelta(days=3, hours=1)).isoformat()
    for one in (entry(0.25, time, environment=here), entry(0.5, environment=ENVIRONMENT)):
        assert Store().save(*one) is None


def test_list_shows_this_machine_first_and_the_damaged(run: RunCommand, toy: Toy, cache: Path) -> None:
    kept(toy)
    damaged = cache / "tune" / "v1" / ENVIRONMENT.digest / "entries" / "0123.json"
    damaged.write_text("")
    result = run("tuned", "list")
    assert result.exit_code == 0, result.output
    ours, theirs = "toy on Toy 1 (toy_1, driver 1.0), toy 1: used here", "numba on AMD EPYC (znver4), numba 0.61"
    assert result.output.index(ours) < result.output.index(theirs)
    assert "256-bit vectors: not used here: another device, version, or state of the kernels" in result.output
    text = "float32, head_dim 128, 32,768 keys, chunks of 2,048, top 3, 2,048 anchored, 9 to 16 heads x batch"
    rows = [line for line in result.output.splitlines() if text in line]
    assert re.search(r"attend .* 4.00 x .* tile=128 .* 3 days", rows[0])
    assert re.search(r"attend .* 2.00 x .* tile=128 .*", rows[1])
    assert f"Damaged, not used: {damaged}: is empty" in result.output
    assert f"2 results in {cache}/tune/v1." in result.output


def test_list_of_nothing(run: RunCommand, cache: Path) -> None:
    assert run("tuned", "list").output == f"0 results in {cache}/tune/v1.\n"


def test_results_travel(run: RunCommand, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(toy)
    held = list(Store().entries())
    file = tmp_path / "tuned.json"
    assert run("tuned", "export", file).output == f"2 results written to {file}.\n"
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "another"))
    assert "2 added, 0 replaced by newer ones, 0 left as they are" in run("tuned", "merge", file).output
    assert list(Store().entries()) == held
    assert "0 added, 0 replaced by newer ones, 4 left as they are" in run("tuned", "merge", file, file).output


def test_merge_takes_all_files_or_none(
    run: RunCommand, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(toy)
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    run("tuned", "export", good)
    bad.write_text(good.read_text()[:-9])
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "another"))
    assert f"{bad} must be a file of exported results: is no JSON" in run.fails("tuned", "merge", good, bad)
    assert list(Store().entries()) == []


def test_ship_writes_the_data_of_the_package(run: RunCommand, toy: Toy, tmp_path: Path) -> None:
    assert "there must be results in" in run.fails("tuned", "ship", tmp_path / "data")
    kept(toy)
    result = run("tuned", "ship", tmp_path / "data")
    files = [tmp_path / "data" / "toy_1" / "toy.json", tmp_path / "data" / "znver4" / "numba.json"]
    assert result.output.splitlines() == [str(file) for file in files]
    assert [json.loads(file.read_text())["entries"][0]["gain"] for file in files] == [4.0, 2.0]


def test_clear_asks(run: RunCommand, toy: Toy, cache: Path) -> None:
    kept(toy)
    assert run("tuned", "clear").exit_code == 1  # nobody answers
    assert len(list(Store().entries())) == 2
    assert run("tuned", "clear", "--yes").output == f"2 results removed from {cache}/tune/v1.\n"
    assert list(Store().entries()) == []


@pytest.mark.parametrize("arguments", [("export", "/proc/self/fdinfo/x"), ("ship", "/proc/self/fdinfo")])
def test_where_nothing_can_be_written(run: RunCommand, toy: Toy, arguments: tuple[str, str]) -> None:
    kept(toy)
    line = run.fails("tuned", *arguments)
    assert line.startswith(f"Error: tuned {arguments[0]}: {arguments[1]} must be a place that can be written: ")


def test_merge_where_nothing_can_be_written(
    run: RunCommand, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(toy)
    run("tuned", "export", tmp_path / "tuned.json")
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "/proc/self/fdinfo")
    assert "must be a place that can be written" in run.fails("tuned", "merge", tmp_path / "tuned.json")
    assert os.environ["SPARSEMOC_CACHE_DIR"] == "/proc/self/fdinfo"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (0, "any batch and heads, deterministic"),
        (1, "1 head x batch"),
        (2, "2 heads x batch"),
        (4, "3 to 4 heads x batch"),
    ],
)
def test_whom_a_result_serves(rows: int, text: str) -> None:
    assert results.served(entry(rows=rows).key) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-6, "1.23 us"), (4.5678e-3, "4.57 ms"), (0.9996, "1 s"), (7.891, "7.89 s"), (4000, "4,000 s")],
)
def test_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text
