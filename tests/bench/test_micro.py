"""The micro-benchmarks at tiny sizes: which steps of which backends run, and that a wrong step fails."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import available_backends, get_backend

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

ROOT = Path(__file__).resolve().parents[2]

#: Steps by backend, and what of them is left out here: Triton's interpreter takes a second a call.
OPERATIONS = {"pool", "route", "index", "attend", "backward"}
STEPS = {
    "reference": {*OPERATIONS, "call"},
    "numba": {*OPERATIONS, "call", "index_forward"},
    "triton": {*OPERATIONS, "merge"},
    "cupy": {*OPERATIONS, "call", "merge"},
}
CHOSEN = "not (triton and (bfloat16 or call))"


#: A reference backend that is wrong in every step, as a plug-in of pytest.
PLANTED = """
from sparsemoc.backends.reference import ReferenceBackend as Backend
from sparsemoc.spec.layout import ChunkMajor, Layout

pool, route, attend, backward = Backend.pool, Backend.route, Backend.attend, Backend.attend_backward
chunk_major = Layout.chunk_major

def without_last(layout):
    selected = layout.selected.copy()
    selected[..., -1] = -1
    return Layout(selected, layout.plan)

def turned(layout):
    found = chunk_major(layout)
    return ChunkMajor(found.ptr, found.query[::-1], found.slot)

Backend.pool = lambda self, problem, k, *more, **config: pool(self, problem, 1.05 * k, *more, **config)
Backend.route = lambda self, problem, q, *more, **config: route(self, problem, -q, *more, **config)
Backend.attend = lambda self, problem, q, k, v, layout, *more, **config: attend(
    self, problem, q, k, v, without_last(layout), *more, **config)
Backend.attend_backward = lambda self, problem, q, k, v, layout, *more, **config: backward(
    self, problem, q, k, v, without_last(layout), *more, **config)
Layout.chunk_major = turned
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """bench is no part of the package: it is imported from the root of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: import_module(f"bench.micro.{name}")


def _run(folder: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run the tiny benchmarks in a process; return it, and the outcome of each benchmark."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    report = folder / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/micro", "--tiny", "-p", "no:cacheprovider", f"--junitxml={report}",
         f"--benchmark-storage=file://{folder / 'runs'}", *arguments],
        cwd=ROOT,
        env={**outside, "SPARSEMOC_CACHE_DIR": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    found = {}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        outcomes = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.attrib["name"]] = outcomes[0] if outcomes else "passed"
    return done, found


def _present() -> set[str]:
    return {name for name, reason in available_backends().items() if reason is None and name in STEPS}


def test_every_step_of_every_backend_runs(tmp_path: Path) -> None:
    done, found = _run(tmp_path, "--benchmark-disable", "-k", CHOSEN)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = {"test_plan[tiny]"}
    for name in _present():
        for step in STEPS[name]:
            once = name == "triton" or step.startswith("index")
            for dtype in ("float32",) if once else ("float32", "bfloat16"):
                wanted.add(f"test_{step}[{name}-{dtype}-tiny]")
    assert {name for name, outcome in found.items() if outcome == "passed"} == wanted
    skipped = {name for name, outcome in found.items() if outcome == "skipped"}
    assert {"test_merge[numba-float32-tiny]", "test_index_forward[reference-float32-tiny]"} <= skipped


def test_a_planted_wrong_kernel_fails(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    done, found = _run(
        tmp_path, "--benchmark-disable", "-p", "planted", "-k", "reference or numba and pool", PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 1, done.stdout + done.stderr
    ran = {name: outcome for name, outcome in found.items() if outcome != "skipped"}
    wrong = {name for name in ran if "reference" in name}
    assert {name.partition("[")[0].removeprefix("test_") for name in wrong} == STEPS["reference"]
    assert {name for name, outcome in ran.items() if outcome == "failure"} == wrong
    assert "WrongError: a centroid is off by" in done.stdout
    assert "not its best chunks" in done.stdout
    assert "WrongError: the index does not hold every route once" in done.stdout


def test_runs_are_stored_and_compared(tmp_path: Path) -> None:
    chosen = ("-k", "numba and attend and float32", "--benchmark-compare")
    first, _ = _run(tmp_path, *chosen, "--benchmark-save=before")
    assert first.returncode == 0, first.stdout + first.stderr  # nothing to compare with is no error
    report = tmp_path / "second.json"
    second, _ = _run(tmp_path, *chosen, f"--benchmark-json={report}")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "benchmark 'attend, tiny, float32': 2 tests" in second.stdout
    assert "(0001_before)" in second.stdout
    (entry,) = json.loads(report.read_text())["benchmarks"]
    facts = entry["extra_info"]
    assert entry["stats"]["rounds"] == 15
    # 36 queries see 4 text keys, 12 of their shot and two chunks of 4; 4 text queries see all 40; of two heads.
    assert facts["pairs"] == 2 * (36 * (4 + 12 + 2 * 4) + 4 * 40)
    assert facts["useful_flops"] == 4 * 16 * facts["pairs"]
    assert facts["backend_version"] == get_backend("numba").version()
    assert facts["config"]["key_tile"] >= 16
    assert facts["config_source"] in ("shipped", "default")
    assert facts["architecture"]
    assert "node" not in json.loads(report.read_text())["machine_info"]


def test_processes_side_by_side_are_refused(tmp_path: Path) -> None:
    done, _ = _run(tmp_path, PYTEST_XDIST_WORKER="gw0")
    assert done.returncode == 4
    assert "disturb each other's times. Hint: add -n 0." in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_call_on_a_gpu_waits_for_it(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda: order.append("waited"))
    ready = load("ready").Ready(get_backend("numba"), "tiny", "float32", "torch", "cuda")
    assert ready.waiting(lambda: [*order, "called"])() == ["called"]
    assert order == ["waited"]


def test_wrong_values_are_refused(load: Callable[[str], Any]) -> None:
    checks, sizes = load("checks"), load("sizes")
    named, given = sizes.problem("tiny"), sizes.given("tiny", "float32")
    x, scale, plan = given.arrays, named.head_dim**-0.5, named.plan()
    dq, dk, dv = moc.attention_grads(x.q, x.k, x.v, named.spec, x.d_out, backend="numba")
    late = np.where(np.arange(named.tokens) == named.tokens - 1, 1e-3, 0.0)
    turned = given.selected[..., ::-1]
    other = moc.plan(replace(named.spec, anchors=("text",))).samples[0]

    checks.rows(named, given, {"out": given.out, "lse": given.lse, "dq": dq})
    checks.keys(named, given, dk, dv)
    checks.routes(named, given, given.selected)
    checks.plan(named, plan.samples[0])
    wrong: dict[str, Callable[[], Any]] = {
        "lse is off": lambda: checks.rows(named, given, {"lse": given.lse + late}),
        "out is off by inf": lambda: checks.rows(named, given, {"out": np.full_like(given.out, np.nan)}),
        "dq is off": lambda: checks.rows(named, given, {"dq": dq * np.float32(1.001)}),
        "dk is off": lambda: checks.keys(named, given, dk + np.float32(scale), dv),
        "dv is off": lambda: checks.keys(named, given, dk, dv * np.float32(1.01)),
        "not its best chunks": lambda: checks.routes(named, given, turned),
        "the anchors of query": lambda: checks.plan(named, other),
        "a centroid is off": lambda: checks.pool(named, given, given.centroids * np.float32(1.00001)),
    }
    for message, call in wrong.items():
        with pytest.raises(checks.WrongError, match=message):
            call()
