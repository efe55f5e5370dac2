"""The GPU command without a GPU: its arguments, its table, its counts, its checks, and every section on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import sparsemoc as moc

ROOT = Path(__file__).resolve().parents[2]
TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="torch is not installed")

Load = Callable[[str], Any]
FACTS = {
    "device": "NVIDIA H100 80GB HBM3", "device_memory": 80 * 2**30, "capability": [9, 0], "driver": "1.2",
    "versions": {"torch": "2.11.0", "triton": "3.6.0", "numba": None}, "cuda": True, "backend_absent": None,
}  # fmt: skip


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """bench is no part of the package: it is imported from the root of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: import_module(f"bench.gpu.{name}")


@pytest.fixture
def on_cpu(load: Load, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The sections with a backend for the CPU in place of the GPU's, and of the one beside it: they do not care."""
    monkeypatch.setattr(load("figures"), "RIVALS", {"numba": "numba"})
    return load


def _setup(load: Load, judged: bool = False, backend: str = "numba") -> Any:
    return load("report").Setup("cpu", True, judged, backend)


def _told(
    load: Load, section: str, function: Callable[[Any], None], judged: bool = False, backend: str = "numba"
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    function(load("report").Report(rows.append, section, _setup(load, judged, backend)))
    return rows


def test_arguments(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    cli, sections = load("cli"), load("sections")
    assert [cli.parser().parse_args(words).backend for words in ([], ["--backend", "cupy"])] == ["triton", "cupy"]
    asked = cli.parser().parse_args([])
    assert (asked.out, asked.budget_s, asked.quick, tuple(asked.only)) == (None, 540, False, sections.NAMES)
    asked = cli.parser().parse_args(["--out", "d", "--budget-s", "60", "--only", "paper", "stages", "--quick"])
    assert (asked.out, asked.budget_s, asked.quick, asked.only) == (Path("d"), 60, True, ["paper", "stages"])
    with pytest.raises(SystemExit) as ended:
        cli.parser().parse_args(["--only", "pictures"])
    assert ended.value.code == 2
    assert "pictures" in capsys.readouterr().err


def test_requirements_are_plain(load: Load) -> None:
    table, names = load("requirements").REQUIREMENTS, load("sections").NAMES
    assert len({(one.backend, one.section, one.figure, one.stage) for one in table}) == len(table)
    assert {one.backend for one in table} == set(load("cli").BACKENDS)
    for one in table:
        assert one.section in names
        assert (one.at_least is None) != (one.at_most is None)
        bound = one.at_most if one.at_least is None else one.at_least
        assert one.met(bound)
        assert not one.met(bound * (0.99 if one.at_most is None else 1.01))
        assert not one.met(float("nan"))
        assert f"{bound:g} {one.unit}" in one.text


@pytest.mark.parametrize(
    ("device", "judged"),
    [
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H200", True),
        ("NVIDIA H20", False),
        ("NVIDIA A100-SXM4-80GB", False),
        ("cpu, AMD EPYC 9654", False),
    ],
)
def test_devices_that_are_judged(load: Load, device: str, judged: bool) -> None:
    assert load("requirements").judges(device) is judged


def test_figures_are_judged_by_the_table(load: Load) -> None:
    def tell(report: Any) -> None:
        report.figure("c", "forward", 8.1, "ms")
        report.figure("c", "forward and backward", 20.0, "ms", rounds=7)
        report.figure("c", "something else", 1.0, "ms")

    missed, met, free = _told(load, "flashmoba", tell, judged=True, backend="triton")
    assert (missed["met"], missed["required"]) == (False, "≤ 8 ms")
    assert (met["met"], met["detail"]) == (True, {"rounds": 7})
    assert (free["met"], free["required"]) == (None, None)
    assert [row["met"] for row in _told(load, "flashmoba", tell, backend="triton")] == [None, None, None]
    assert load("table").failures([missed, met, free]) == [missed]
    lacking = load("table").missing([missed, met, free], ["flashmoba"], _setup(load, True, "triton"))
    assert [one.figure for one in lacking] == ["deterministic"]
    with pytest.raises(ValueError, match="required in ms"):
        _told(load, "flashmoba", lambda report: report.figure("c", "forward", 1.0, "s"), backend="triton")


def test_each_backend_is_judged_by_its_own_requirements_those_of_later_stages_are_shown(load: Load) -> None:
    def tell(report: Any) -> None:
        report.figure("c", "forward, chunks of 256", 290.0, "TFLOP/s")
        report.figure("c", "forward, chunks of 64", 1.0, "TFLOP/s")
        report.figure("c", "forward, chunks of 256, beside Triton", 0.9, "x Triton")

    first, later, beside = _told(load, "routed", tell, judged=True, backend="cupy")
    assert (first["met"], first["required"]) == (True, "≥ 280 TFLOP/s; ≥ 420 TFLOP/s in stage 2")
    assert (later["met"], later["required"]) == (None, "≥ 180 TFLOP/s in stage 2")
    assert (beside["met"], beside["required"]) == (None, "≥ 1 x Triton in stage 2")
    lacking = load("table").missing([first, later, beside], ["routed", "paper"], _setup(load, True, "cupy"))
    assert [one.figure for one in lacking] == [
        "forward, chunks of 1024", "forward, chunks of 512", "forward, own anchors",
    ]  # fmt: skip
    assert [row["met"] for row in _told(load, "routed", tell, judged=True, backend="triton")] == [False, False, None]


def test_all_stages_are_judged_once_their_time_has_come(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load("requirements"), "STAGE", 2)

    def tell(report: Any) -> None:
        report.figure("c", "forward, chunks of 256", 290.0, "TFLOP/s")

    (row,) = _told(load, "routed", tell, judged=True, backend="cupy")
    assert (row["met"], row["required"]) == (False, "≥ 280 TFLOP/s; ≥ 420 TFLOP/s")
    assert len(load("table").missing([], ["anchors"], _setup(load, True, "cupy"))) == 3


@pytest.mark.parametrize(("value", "code"), [(7.0, 0), (9.0, 1)])
def test_a_run_writes_its_rows_with_its_facts(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: float, code: int
) -> None:
    cli, table = load("cli"), load("table")

    def measured(asked: Any, setup: Any, deadline: float) -> list[dict[str, Any]]:
        assert setup.judged
        assert setup.cuda
        return _told(load, "flashmoba", lambda report: report.figure("c", "forward", value, "ms"), True, "triton")

    monkeypatch.setattr(cli, "_looked", lambda quick, backend: (FACTS, None))
    monkeypatch.setattr(cli, "_measured", measured)
    monkeypatch.setattr(table, "missing", lambda rows, only, setup: [])
    assert cli.main(["--out", str(tmp_path / "new"), "--only", "flashmoba"]) == code
    (path,) = (tmp_path / "new").iterdir()
    assert path.name.startswith("nvidia-h100-80gb-hbm3-2")
    (record,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert record["value"] == value
    assert record["command"] == f"python -m bench.gpu --out {tmp_path / 'new'} --only flashmoba"
    for name in ("kind", "section", "case", "name", "unit", "required", "met", "reason", "detail", "quick", "time",
                 "commit", "device", "device_memory", "capability", "driver", "versions"):  # fmt: skip
        assert name in record


def test_what_is_required_and_absent_fails_a_run(load: Load, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(load("cli"), "_looked", lambda quick, backend: (FACTS, None))
    assert load("cli").main(["--budget-s", "0"]) == 1
    shown = capsys.readouterr().out
    assert "paper: routing share (≤ 5 %): required, not measured" in shown
    assert "0 s of --budget-s are left" in shown


@needs_torch
@pytest.mark.skipif(TORCH and import_module("torch").cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_says_so(tmp_path: Path) -> None:
    done = _run("--out", str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    assert "torch finds no CUDA device" in done.stdout
    assert not (tmp_path / "out").exists()


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


MODULE = """
import os, time
def fine(report, n): report.check("c", f"{n}", True)
def raises(report): report.check("c", "before", True); raise ValueError("no good")
def dies(report): os._exit(3)
def hangs(report): time.sleep(600)
"""


def test_a_section_that_breaks_stops_no_other(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "planted_sections.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    processes, setup = load("processes"), _setup(load)
    made = [processes.Task(name, f"planted_sections:{name}", setup) for name in ("raises", "dies")]
    made += [processes.Task("fine", "planted_sections:fine", setup, {"n": n}) for n in range(2)]
    rows = list(processes.run(made, 2, 120))
    told = {(row["section"], row["name"]): row for row in rows}
    assert told["raises", "before"]["kind"] == "check"
    assert told["raises", "ValueError"]["reason"] == "ValueError: no good"
    assert "exit code 3" in told["dies", "process"]["reason"]
    assert told["fine", "0"]["met"]
    assert told["fine", "1"]["met"]
    hung, left_out = processes.run([processes.Task("hangs", "planted_sections:hangs", setup), made[3]], 1, 2)
    assert (hung["kind"], hung["reason"]) == ("failure", "ended after 2 s, its limit")
    assert (left_out["kind"], left_out["section"]) == ("skip", "fine")


@needs_torch
def test_what_compares_runs_at_the_same_time_and_what_times_alone(load: Load) -> None:
    sections = load("sections")
    batches = [[one.name for one in batch] for batch in sections.batches(sections.NAMES, True)]
    assert batches[0] == ["prepare", "determinism", "graphs", "conformance"]
    assert [len(batch) for batch in batches[1:]] == [1] * (len(sections.NAMES) - 3)
    assert [[one.name for one in batch] for batch in sections.batches(["wan"], False)] == [["wan"]]
    assert load("prepare").names(["stages", "wan"], False) == ["paper", "flashmoba", "wan"]
    assert load("prepare").names(["graphs", "routed"], False) == ["65536", "181322"]
    full = load("report").Setup("cuda", False, True)
    shared = sections.shared_out(["a", "b", "c"], full, 1, 2, 100.0)
    assert shared == [{"names": [name], "seconds": 17.0} for name in "abc"]
    assert all(hasattr(import_module(module), name) for module, name in
               (one.function.split(":") for one in sections.SECTIONS))  # fmt: skip


def test_a_property_looks_at_no_more_once_its_time_is_over(load: Load) -> None:
    seen: list[int] = []
    limited = load("exact").Limited(lambda implementation, problem: seen.append(problem), 0.0)
    for problem in range(3):
        limited(None, problem)
    assert (seen, limited.done) == ([0], 1)


LAYOUTS = {
    "shots": moc.RoutingSpec(
        stream=moc.Stream.multishot(3, 2, 3, 4, caption=3, prompt=5), chunks=moc.Chunks(size=7), top_k=3,
        anchors=("text", "shot"), causal="chunk",
    ),
    "own chunk, token causal": moc.RoutingSpec(
        stream=moc.Stream((moc.Segment("video", 61),)), chunks=moc.Chunks(size=8), top_k=3, anchors=("chunk",),
        causal="token",
    ),
    "cut by a window": moc.RoutingSpec(
        stream=moc.Stream((moc.Segment("video", 61),)), chunks=moc.Chunks(size=8), top_k=2, anchors=(moc.window(3),)
    ),
    "no anchors": moc.RoutingSpec(
        stream=moc.Stream((moc.Segment("video", 61),)), chunks=moc.Chunks(size=8), top_k=4, anchors=()
    ),
}  # fmt: skip


@needs_torch
@pytest.mark.parametrize("name", LAYOUTS)
def test_pairs_are_those_of_the_layout(load: Load, name: str) -> None:
    settings, counts = load("settings"), load("counts")
    setting = settings.Setting(name=name, spec=LAYOUTS[name], heads=4, kv_heads=2, head_dim=8)
    x = settings.arrays(setting, _setup(load), batch=2)
    layout = moc.route(x.q, x.k, setting.spec)
    pairs = counts.pairs(layout)
    assert pairs == layout.pairs() == layout.dense_mask().sum()
    assert counts.flops(pairs, 8, counts.FORWARD) == layout.flops(8)
    tokens = setting.tokens
    every = tokens * (tokens + 1) // 2 if "token causal" in name else tokens**2
    assert counts.dense_pairs(setting) == 4 * every


@needs_torch
def test_random_routes_are_a_valid_layout(load: Load) -> None:
    setting = load("settings").routed(90, 16, _setup(load))
    layout = load("counts").random_layout(setting, _setup(load))
    layout.validate()
    assert load("counts").pairs(layout) == layout.pairs() == 90 * 2 * 15


@pytest.fixture
def results(load: Load) -> tuple[Any, Any, Any, dict[str, Any]]:
    """A setting, its arrays, layout and right results."""
    setup = _setup(load)
    setting = load("settings").setting("paper", setup)
    x = load("settings").arrays(setting, setup)
    q, k, v = x.qkv
    out, lse, layout = moc.attention(q, k, v, setting.spec, return_lse=True, return_layout=True)
    dq, dk, dv = moc.attention_grads(q, k, v, setting.spec, x.d_out)
    return setting, x, layout, {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


@needs_torch
def test_right_results_pass(load: Load, results: Any) -> None:
    setting, x, layout, right = results
    told = load("truth").check(setting, x, layout, right)
    assert set(told["errors"]) == set(right)
    assert told["rows"] == 16


@needs_torch
@pytest.mark.parametrize("name", ["out", "lse", "dq", "dk", "dv"])
@pytest.mark.parametrize("wrong", ["scaled", "one row", "NaN"])
def test_a_wrong_result_is_refused(load: Load, results: Any, name: str, wrong: str) -> None:
    setting, x, layout, right = results
    array = right[name].clone()
    if wrong == "scaled":
        array *= 1.001
    elif name == "lse":
        array[..., -1] += float("nan") if wrong == "NaN" else 0.001
    else:
        array[:, -1] = float("nan") if wrong == "NaN" else array[:, -2]
    # dk and dv are judged by the lse that the queries were given, so a wrong lse may show there first.
    with pytest.raises(load("truth").WrongError, match=" is off by "):
        load("truth").check(setting, x, layout, {**right, name: array})


@needs_torch
def test_a_wrong_route_is_refused(load: Load, results: Any) -> None:
    setting, x, _, _ = results
    worse = moc.route(-x.q, x.k, setting.spec)
    with pytest.raises(load("truth").WrongError, match="lower score"):
        load("truth").check(setting, x, worse, {})
    fewer = worse.selected.clone()
    fewer[:, :, -1] = -1
    with pytest.raises(load("truth").WrongError, match="not as many"):
        load("truth").check(setting, x, moc.Layout(fewer, worse.plan), {})


class PlainSequences:
    """Attention over sequences end to end, one after another."""

    @staticmethod
    def _parts(part: Any) -> Any:
        return zip(part.starts_q[:-1].tolist(), part.starts_q[1:].tolist(), part.starts_k[:-1].tolist(),
                   part.starts_k[1:].tolist(), strict=True)  # fmt: skip

    def _scores(self, q: Any, k: Any, causal: bool) -> Any:
        scores = q[:, 0] @ k[:, 0].T * q.shape[2] ** -0.5
        return scores.masked_fill(scores.new_ones(scores.shape).triu(1) > 0, -float("inf")) if causal else scores

    def forward(self, q: Any, k: Any, v: Any, part: Any) -> tuple[Any, Any, Any]:
        out, lse = q.new_zeros((*q.shape[:2], v.shape[2])), q.new_zeros((1, len(q)))
        for i, i_end, j, j_end in self._parts(part):
            scores = self._scores(q[i:i_end], k[j:j_end], part.causal)
            lse[0, i:i_end] = scores.logsumexp(1)
            out[i:i_end, 0] = scores.softmax(1) @ v[j:j_end, 0]
        return out, lse, "state"

    def backward(
        self, d_out: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, part: Any, state: Any
    ) -> tuple[Any, Any, Any]:
        assert state == "state"
        dq, dk, dv = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        for i, i_end, j, j_end in self._parts(part):
            rows, keys = slice(i, i_end), slice(j, j_end)
            p = (self._scores(q[rows], k[keys], part.causal) - lse[0, rows, None]).exp()
            delta = (d_out[rows, 0] * out[rows, 0]).sum(1, keepdim=True)
            slopes = p * (d_out[rows, 0] @ v[keys, 0].T - delta) * q.shape[2] ** -0.5
            dq[rows, 0] = slopes @ k[keys, 0]
            dk[keys, 0] = slopes.T @ q[rows, 0]
            dv[keys, 0] = p.T @ d_out[rows, 0]
        return dq, dk, dv


@needs_torch
def test_the_composition_of_moba_computes_the_same(load: Load) -> None:
    setup = _setup(load)
    setting = load("settings").setting("flashmoba", setup)
    composition: Any = import_module("bench.peers.composition")
    router: Any = import_module("bench.peers.router")
    x = load("settings").arrays(setting, setup)
    q, k, v = x.qkv
    out, layout = moc.attention(q, k, v, setting.spec, return_layout=True)
    routes = router.Router(layout.plan, q.shape[2], "cpu")(q, k)
    composed = composition.Composition(layout.plan, k.shape[2], "cpu", PlainSequences())
    assert (composed.forward(q, k, v, routes)[0] - out).abs().max() < 1e-5
    wanted = moc.attention_grads(q, k, v, setting.spec, x.d_out)
    for grad, right in zip(composed.gradients(q, k, v, routes, x.d_out)[1:], wanted, strict=True):
        assert (grad - right).abs().max() < 1e-4
    routed = load("settings").routed(96, 16, setup)
    q, k, v = load("settings").arrays(routed, setup).qkv
    fixed = load("counts").random_layout(routed, setup)
    alone = composition.Composition(fixed.plan, k.shape[2], "cpu", PlainSequences())
    assert (alone.forward(q, k, v, fixed.selected[0].long())[0] - moc.attend(q, k, v, fixed)).abs().max() < 1e-5


@needs_torch
def test_every_required_figure_is_told_by_its_section(on_cpu: Load) -> None:
    sections = {"flashmoba": "flashmoba", "paper": "figures", "wan": "figures", "short": "figures",
                "anchors": "parts", "routed": "parts"}  # fmt: skip
    rows = [row for name, module in sections.items() for row in _told(on_cpu, name, getattr(on_cpu(module), name))]
    assert not on_cpu("table").failures(rows)
    told = {(row["section"], row["name"]) for row in rows if row["kind"] == "figure"}
    for one in on_cpu("requirements").REQUIREMENTS:
        # Chunks are shorter here, and torch counts memory on CUDA devices only.
        figure = re.sub(r" of \d+", " of 16", one.figure) if one.section == "routed" else one.figure
        assert (one.section, figure) in told or figure.endswith("memory")
    for row in rows:
        assert on_cpu("table").line(row)
        assert json.loads(json.dumps(row)) == row


@needs_torch
def test_comparisons_stages_and_preparation_run(on_cpu: Load) -> None:
    rows = _told(on_cpu, "determinism", on_cpu("exact").determinism)
    rows += _told(on_cpu, "graphs", on_cpu("graphs").graphs)
    rows += _told(on_cpu, "stages", on_cpu("stages").stages)
    for name in on_cpu("prepare").names(on_cpu("sections").NAMES, True):
        rows += _told(on_cpu, "prepare", partial(on_cpu("prepare").prepare, name=name))
    assert not on_cpu("table").failures(rows)
    assert {row["kind"] for row in rows} == {"check", "skip", "time"}
    assert on_cpu("stages").stage_of("attend_routed") == "routed"
    assert on_cpu("stages").stage_of("pool_units") == "route"
    assert on_cpu("stages").stage_of("pool_kernel") == "pool"
    assert on_cpu("stages").stage_of("void at::native::add") == "other"


@needs_torch
def test_properties_of_the_conformance_suite_are_told_one_by_one(on_cpu: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(report: Any) -> None:
        on_cpu("exact").conformance(report, ["forward", "ties"], 0.0)

    rows = _told(on_cpu, "conformance", tell)
    assert [(row["name"], row["met"], row["detail"]) for row in rows] == [
        ("forward", True, {"problems": 1}),
        ("ties", True, {"problems": 1}),
    ]
    monkeypatch.setattr("sparsemoc.api.attention", lambda *arrays, **options: 1 / 0)
    (broken,) = _told(on_cpu, "conformance", lambda report: on_cpu("exact").conformance(report, ["ties"], 0.0))
    assert broken["met"] is False
    assert "division by zero" in broken["reason"]


def test_every_cuda_kernel_has_a_stage(load: Load) -> None:
    from sparsemoc.backends.cupy import sources

    written = {name for file in sources.FOLDER.glob("*.cu") for name in sources.signatures(file.stem)}
    assert {name: load("stages").stage_of(name) for name in written if load("stages").stage_of(name) == "other"} == {}
