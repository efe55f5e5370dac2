"""The command on tiny problems: every contender gets a line, with a time that was checked or the reason for none."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.tuning import resolve
from sparsemoc.tuning.problems import PROBLEMS

ROOT = Path(__file__).parents[2]

Run = Callable[..., tuple[int, list[dict[str, Any]]]]

FIELDS = {
    "schema", "command", "time", "commit", "quick", "problem", "about", "mode", "tokens", "queries", "heads",
    "problem_heads", "kv_heads", "head_dim", "v_head_dim", "dtype", "batch", "spec", "spec_hash", "chunk", "chunks",
    "top_k", "pairs", "dense_pairs", "density", "pair_ratio", "contender", "kind", "computes", "requested", "used",
    "note", "config", "config_source", "seconds", "rounds", "routing", "useful_flops", "useful_bytes", "tflops",
    "roofline", "dense", "memory", "refcheck", "machine", "versions", "reason",
}  # fmt: skip

PLANTED = '''
"""Peers of a test, by NumPy."""
import numpy as np
from types import SimpleNamespace
from bench.peers import Unavailable

FACTOR = {factor}


def _dense(inputs):
    q, k, v = (x[0].transpose(1, 0, 2).astype(np.float64) for x in (inputs.q, inputs.k, inputs.v))
    logits = q @ k.transpose(0, 2, 1) * q.shape[2] ** -0.5
    weights = np.exp(logits - logits.max(2, keepdims=True))
    out = (weights / weights.sum(2, keepdims=True)) @ v
    return {{"out": FACTOR * out.transpose(1, 0, 2)[None].astype(np.float32)}}


def _absent():
    raise Unavailable("the library of this one is not installed")


def _broken():
    raise ZeroDivisionError("no good")


def peers(problem, plan, layout, inputs, mode):
    def peer(name, prepare, flops=1e6):
        return SimpleNamespace(name=name, computes="dense", flops=flops, share=0.5, bytes=0, note="of a test",
                               prepare=prepare)
    yield peer("plain", lambda: lambda: _dense(inputs))
    yield peer("absent", _absent)
    yield peer("broken", lambda: _broken)
    yield peer("endless", lambda: _broken, flops=1e14)
'''


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command in this process, with a cache of its own and planted peers."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "cache"))
    for name, factor in (("right", 1), ("wrong", 1.01)):
        (tmp_path / f"planted_{name}.py").write_text(PLANTED.format(factor=factor))
    cli: Any = import_module("bench.run.cli")
    entry: Any = import_module("bench.peers.entry")
    own = entry.loaded
    monkeypatch.setattr(entry, "loaded", lambda name: _planted(name) or own(name))

    def called(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        out = tmp_path / "new" / "lines.jsonl"
        out.unlink(missing_ok=True)
        code = cli.main([*arguments, "--out", str(out)])
        return code, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    return called


def _planted(name: str) -> Any:
    """Return a planted source of several peers; None for a peer that is a function, as users write them."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function) if function == "peers" else None


QUICK = ("--quick", "--no-peers", "--no-tune", "--problem", "paper/single-shot", "--dtype", "float32")


def test_a_record_holds_every_field_and_its_figures_agree(run: Run, backend: str, capsys: Any) -> None:
    arguments = (*QUICK, "--mode", "forward", "--backend", backend, "--peer", "planted_right:peers")
    code, records = run(*arguments)
    assert code == 0, capsys.readouterr().out
    by_name = {one["contender"]: one for one in records}
    assert set(by_name) == {backend, "plain", "absent", "broken", "endless"}
    assert all(set(one) == FIELDS for one in records)
    ours, plain = by_name[backend], by_name["plain"]
    problem = PROBLEMS["paper/single-shot"]
    assert (ours["schema"], ours["quick"], ours["problem_heads"], ours["heads"]) == (2, True, problem.heads, 2)
    assert ours["command"].startswith("python -m bench.run --quick --no-peers")
    assert (ours["requested"], ours["used"], ours["kind"], ours["computes"]) == (backend, backend, "backend", "moc")
    assert set(ours["config"]) == set(ours["config_source"]) == {"pool", "route", "attend"}
    spec = moc.RoutingSpec.from_json(json.dumps(ours["spec"]))
    q, k = np.random.default_rng(0).standard_normal((2, 1, ours["tokens"], 2, 128), np.float32)
    layout = moc.route(q, k, spec)
    assert ours["pairs"] == pytest.approx(layout.pairs(), rel=0.05)  # other numbers: chunks are not all of a length
    assert ours["useful_flops"] == 4 * 128 * ours["pairs"]
    seconds = ours["seconds"]["median"]
    assert ours["seconds"]["p20"] <= seconds <= ours["seconds"]["p80"]
    assert ours["tflops"] == pytest.approx(ours["useful_flops"] / seconds / 1e12)
    roofline = ours["roofline"]
    fed = ours["useful_flops"] / ours["useful_bytes"] * roofline["bytes_per_s"]
    assert roofline["share"] == pytest.approx(ours["tflops"] * 1e12 / min(roofline["flops_per_s"], fed))
    assert "threads" in roofline["how"]
    assert 0 < ours["routing"]["share"] < 2
    assert ours["dense"]["contender"] == "plain"
    assert ours["dense"]["share"] == pytest.approx(ours["dense"]["speedup"]["median"] / ours["pair_ratio"])
    assert plain["useful_flops"] == 4 * 128 * 2 * ours["tokens"] ** 2
    assert (plain["dense"], plain["routing"], plain["config"], plain["note"]) == (None, None, None, "of a test")
    for one in (ours, plain):
        assert one["refcheck"]["out"]["error"] <= one["refcheck"]["out"]["budget"]
        assert one["reason"] is None


def test_what_cannot_run_gets_a_line_with_the_reason(run: Run, capsys: Any) -> None:
    arguments = ("--backend", "reference", "--mode", "forward", "--peer", "planted_right:peers")
    code, records = run(*QUICK, *arguments, "--dense-limit-s", "1", "--budget-s", "1e9")
    shown = capsys.readouterr().out
    assert code == 0, "a peer that breaks is not ours"
    reasons = {one["contender"]: one["reason"] for one in records}
    assert reasons["absent"] == "skipped: the library of this one is not installed"
    assert reasons["broken"] == "failed: ZeroDivisionError: no good"
    assert reasons["endless"].startswith("skipped: a dense call takes about")
    assert reasons["endless"].endswith("more than --dense-limit-s 1")
    assert "without a time (1): skipped by --dense-limit-s, see above" in shown
    for name in ("absent", "broken", "endless"):
        (one,) = (one for one in records if one["contender"] == name)
        assert (one["seconds"], one["tflops"], one["roofline"], one["dense"], one["refcheck"]) == (None,) * 5
        assert reasons[name] in shown


def test_a_wrong_contender_has_no_time_and_fails_the_run(run: Run, capsys: Any) -> None:
    code, records = run(*QUICK, "--backend", "reference", "--mode", "forward", "--peer", "planted_wrong:peers")
    assert code == 1
    (wrong,) = (one for one in records if one["contender"] == "plain")
    assert wrong["reason"].startswith("wrong: paper/single-shot: out is off by")
    assert wrong["seconds"] is None
    (ours,) = (one for one in records if one["contender"] == "reference")
    assert ours["seconds"] is not None
    assert ours["dense"] is None, "a wrong result is no baseline"
    assert "wrong: paper/single-shot: out is off by" in capsys.readouterr().out


MINE = """
import numpy as np


def kernel(call, factor=1):
    q, k, v, _ = call.arrays()
    logits = np.einsum("bihd,bjhd->bhij", q, k).astype(np.float64) * call.scale
    logits[~call.layout.dense_mask()] = -np.inf
    weights = np.exp(logits - logits.max(3, keepdims=True))
    weights /= weights.sum(3, keepdims=True)
    return lambda: factor * np.einsum("bhij,bjhd->bihd", weights, v).astype(np.float32)


def wrong(call):
    return kernel(call, 1.01)
"""


def test_a_kernel_of_the_users_own_joins_and_is_checked(run: Run, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    arguments = (*QUICK, "--backend", "reference", "--mode", "attend", "--peer", "mine:kernel", "mine:wrong")
    code, records = run(*arguments)
    assert code == 1, capsys.readouterr().out
    by_name = {one["contender"]: one for one in records}
    assert by_name["mine:kernel"]["seconds"]["median"] > 0
    assert by_name["mine:kernel"]["computes"] == "moc"
    assert by_name["mine:wrong"]["reason"].startswith("wrong: paper/single-shot: out is off by")


def test_a_backend_that_refuses_or_is_too_slow_says_so(run: Run, capsys: Any) -> None:
    code, records = run("--problem", "ltx-2b/512p", "--backend", "reference", "--no-peers", "--heads", "1", "--no-tune",
                        "--mode", "route", "--rounds", "1")  # fmt: skip
    assert code == 0, capsys.readouterr().out
    (one,) = records
    assert one["reason"] == (
        "skipped: the reference is for tiny problems, at most 8,388,608 (head, query, key) triples, here 37,748,736"
    )
    assert (one["heads"], one["problem_heads"], one["quick"]) == (1, 32, False)


def test_what_no_longer_fits_the_budget_is_said(run: Run, backend: str, capsys: Any) -> None:
    code, records = run("--problem", "wan-14b/*", "--backend", backend, "--no-peers", "--budget-s", "0.01", "--no-tune")
    assert code == 0
    assert [(one["problem"], one["mode"]) for one in records] == [
        ("wan-14b/720p", "forward"), ("wan-14b/720p", "forward+backward")
    ]  # fmt: skip
    for one in records:
        assert one["reason"].startswith("skipped: forward of wan-14b/720p takes about")
        assert "of --budget-s are left" in one["reason"]
        assert one["density"] == pytest.approx(4 / 21)  # four frames of 21, expected before anything is routed
    assert "without a time (2): skipped by --budget-s, see above" in capsys.readouterr().out


def test_a_wish_that_cannot_be_met_is_an_error(run: Run, capsys: Any) -> None:
    for arguments, told in (
        (("--problem", "wan-1.3b/480"), "wan-1.3b/480p"),
        (("--backend", "abacus"), "abacus"),
        (("--peer", "no_such_module:peers"), "module:function"),
    ):
        assert run("--quick", *arguments) == (2, [])
        assert told in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["forward+backward", "route", "attend"])
def test_every_mode_is_checked_and_timed(run: Run, backend: str, mode: str, capsys: Any) -> None:
    code, records = run(
        "--quick", "--no-peers", "--no-tune", "--problem", "decode/new-shot", "--mode", mode, "--backend", backend
    )
    assert code == 0, capsys.readouterr().out
    (one,) = [one for one in records if one["dtype"] == "float32"]
    checked = {"forward+backward": {"dq", "dk", "dv", "out", "lse"}, "route": set(), "attend": {"out", "lse"}}[mode]
    assert checked <= set(one["refcheck"])
    assert one["refcheck"]["routes"] == "equal"
    assert one["seconds"]["median"] > 0
    assert one["queries"] < one["tokens"]
    assert one["dense"] is None


def test_the_first_run_tunes_and_the_second_reuses(run: Run, capsys: Any) -> None:
    pytest.importorskip("numba", reason="the reference has one config, and nothing to tune")
    arguments = ("--quick", "--no-peers", "--problem", "cogvideox-5b/480p", "--dtype", "float32", "--mode", "attend",
                 "--backend", "numba", "--tune-budget-s", "20")  # fmt: skip
    resolve.forget()
    code, (first,) = run(*arguments)
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "tuning: 1 new results" in shown
    assert first["config_source"] == {"attend": "memory"}
    resolve.forget()
    _, (second,) = run(*arguments)
    assert "reused 1 results" in capsys.readouterr().out
    assert second["config_source"] == {"attend": "cache"}
    assert second["config"] == first["config"]


def test_quick_shows_every_mode_and_every_problem(run: Run, capsys: Any) -> None:
    code, records = run("--quick", "--no-peers", "--no-tune", "--backend", "reference")
    assert code == 0, capsys.readouterr().out
    timed = {(one["problem"], one["dtype"], one["mode"]) for one in records if one["seconds"] is not None}
    modes = ("forward", "forward+backward", "route", "attend")
    names = ("paper/single-shot", "cogvideox-5b/480p", "moba/32k", "decode/new-shot")
    assert timed == {
        *(("paper/single-shot", "float32", mode) for mode in modes),
        ("paper/single-shot", "bfloat16", "forward"),
        *((name, "float32", mode) for name in names for mode in modes[:2]),
    }
    shown = capsys.readouterr().out
    assert "s left]" in shown
    assert all(name in shown for name in names)
    assert "TFLOP/s" in shown
    assert f"{len(timed)} of {len(timed)} timed" in shown


def test_problems_come_by_pattern_and_the_cheapest_first(run: Run) -> None:
    cli = import_module("bench.run.cli")
    assert [one.name for one in cli.chosen(["wan-*", "ltx-2b/*"], quick=False)] == [
        "ltx-2b/512p", "wan-1.3b/480p", "wan-14b/720p"
    ]  # fmt: skip
    assert {one.name for one in cli.chosen(None, quick=False)} == set(PROBLEMS)
    (small,) = cli.chosen(["wan-14b/720p"], quick=True)
    assert small.tokens < 400
    assert small.heads == PROBLEMS["wan-14b/720p"].heads
