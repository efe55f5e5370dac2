"""A problem, measured: every contender is checked, then all that hold are timed in the same rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sparsemoc as moc
from bench import configs, timing
from bench.inputs import Inputs, Mode, inputs
from bench.peers.peer import Unavailable, free_bytes
from bench.record import Record, Run, Setting
from bench.refcheck import Question, RefcheckError
from bench.roofline import peaks
from bench.run import budget, checks, contenders, memory
from bench.run.budget import Budget, Pace
from bench.run.contenders import OPERATIONS_OF, Call, Contender, LeftOutError, first_line
from bench.run.tuned import Tuner
from bench.timing import Times
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.plan import Plan
from sparsemoc.tuning.problems import NamedProblem

#: Before the name of a contender: its routing alone.
ROUTING = "routing of "


@dataclass(frozen=True, eq=False, kw_only=True)
class Session:
    """How everything of a run is measured.

    Attributes:
        run: what all records share.
        device: "cpu" or "cuda"; threads: of either side, on the CPU.
        backends: names; peers: functions as `bench.peers.peers`.
        pace: how calls are timed.
        heads: measured, None for as many as fit.
        budget, tuner: seconds of everything, and of tuning.
        dense_limit_s: most seconds of a call of dense attention.
        memory: whether peak memory is measured.
    """

    run: Run
    device: str
    threads: int
    backends: Sequence[str]
    peers: Sequence[Callable[..., Any]]
    pace: Pace
    heads: int | None
    budget: Budget
    tuner: Tuner
    dense_limit_s: float
    memory: bool

    def expected(self, one: Contender, dtype: str) -> float:
        """Return the seconds of a call by counted operations."""
        return one.flops / (one.share * peaks(self.device, dtype, self.threads).flops_per_s)


@dataclass(eq=False)
class _Entry:
    """A contender, and what is known of it so far."""

    one: Contender
    call: Call | None = None
    seconds: float = 0.0
    refcheck: Record | None = None
    memory: Record | None = None
    reason: str | None = None


def measure(session: Session, problem: NamedProblem, dtype: str, modes: Sequence[Mode]) -> Iterator[Record]:
    """Yield the records of a problem in a dtype, mode by mode; one of each backend where nothing of it fits.

    Args:
        session: how.
        problem: with the heads of the model.
        dtype: of the arrays.
        modes: see `bench.inputs`.
    """
    plan = problem.plan()
    rate = peaks(session.device, dtype, session.threads).flops_per_s
    count = session.heads or budget.heads_that_fit(problem, plan, rate, session.device)
    measured = problem.with_heads(min(count, problem.heads))
    kept = budget.expected_pairs(plan, measured.heads)
    seconds = 2 * kept * (problem.head_dim + problem.v_head_dim) / (budget.SHARE * rate)
    needed = session.pace.needed(seconds)
    if needed > session.budget.left:
        reason = budget.no_time(f"forward of {problem.name}", needed, session.budget.left)
        for mode in modes:
            yield from _skipped(session, _setting(measured, problem.heads, plan, dtype, mode, kept), reason)
        return
    x = inputs(measured, dtype, session.device)
    layout = moc.route(x.q, x.k, measured.spec)
    asked = Question(problem.name, measured.spec, x.on_host())
    kept = _pairs(layout, session.device)
    for mode in modes:
        setting = _setting(measured, problem.heads, plan, dtype, mode, kept)
        yield from contest(session, setting, x, layout, asked)


def _pairs(layout: moc.Layout, device: str) -> int:
    if device == "cpu":
        return layout.pairs()
    from bench.gpu import counts

    return counts.pairs(layout)


def _setting(problem: NamedProblem, heads: int, plan: Plan, dtype: str, mode: Mode, pairs: int) -> Setting:
    density = pairs / (problem.heads * problem.queries * problem.tokens)
    return Setting(
        problem=problem, problem_heads=heads, plan=plan, dtype=dtype, mode=mode, pairs=pairs, density=density
    )


def _skipped(session: Session, setting: Setting, reason: str) -> Iterator[Record]:
    for name in session.backends:
        one = contenders.absent(name, setting, reason)
        yield _record(session, setting, _Entry(one, reason=reason), None, None)


def contest(session: Session, setting: Setting, x: Inputs, layout: moc.Layout, asked: Question) -> Iterator[Record]:
    """Check the contenders of a setting, time those that hold, and yield a record for each.

    Args:
        session: how.
        setting: what is computed.
        x: its arrays.
        layout: its routes, which "attend" is given.
        asked: the same, for the check.
    """
    found = [
        *contenders.backends(session.backends, setting, x, layout),
        *contenders.peers(session.peers, setting, x, layout),
    ]
    entries = []
    for one in found:
        entry = _Entry(one)
        entries.append(entry)
        _prepare(session, setting, layout, asked, entry)
        if entry.reason is not None:
            yield _record(session, setting, entry, None, None)
    memory.release(session.device)  # what those have left that broke
    fitting = _fitting(session, [entry for entry in entries if entry.reason is None])
    times = _timed(session, fitting)
    dense = [entry.one.name for entry in fitting if entry.one.computes == "dense"]
    fastest = min(dense, key=lambda name: times.summary(name).median, default=None)
    for entry in entries:
        if entry.call is not None:
            if entry.reason is None and session.memory:
                entry.memory = memory.measured(entry.call, session.device)
            yield _record(session, setting, entry, times if entry.reason is None else None, fastest)


def _prepare(session: Session, setting: Setting, layout: moc.Layout, asked: Question, entry: _Entry) -> None:
    """Make the call of a contender, tune it, check what it gives; or keep the reason why it has no time."""
    try:
        seconds = session.expected(entry.one, setting.dtype)
        _check_room(session, entry.one, seconds)
        call = entry.one.prepare()  # first what is absent says so
        _check_limit(session, entry.one, seconds)
        if entry.one.tunable:
            session.tuner.tune(call)
        start = time.perf_counter()
        given = dict(call())
        _wait(session.device)
        entry.seconds = time.perf_counter() - start
        if entry.one.more is not None:
            given = {**entry.one.more(), **given}
        entry.refcheck = checks.check(asked, setting, layout, entry.one, given)
        del given
        entry.call = call
    except LeftOutError as error:
        entry.reason = first_line(error)
    except Unavailable as error:
        entry.reason = f"skipped: {first_line(error)}"
    except UnsupportedError as error:
        entry.reason = f"refused: {first_line(error)}"
    except RefcheckError as error:
        entry.reason = f"wrong: {first_line(error)}"
    except Exception as error:  # noqa: BLE001  one that breaks leaves the others whole, and its reason is told
        entry.reason = f"failed: {type(error).__name__}: {first_line(error)}"


def _check_room(session: Session, one: Contender, seconds: float) -> None:
    """Raise where a contender takes more time or memory than there is."""
    needed, left = session.pace.needed(seconds), session.budget.left
    if needed > left:
        raise LeftOutError(budget.no_time("timing it", needed, left))
    if one.bytes and one.bytes > (free := free_bytes(session.device) // 2):
        raise LeftOutError(
            f"skipped: it takes {one.bytes / 1e9:.3g} GB, more than half of the free {2 * free / 1e9:.3g}"
        )


def _check_limit(session: Session, one: Contender, seconds: float) -> None:
    """Raise where a call of dense attention takes longer than anyone wants to wait."""
    if one.computes == "dense" and seconds > session.dense_limit_s:
        raise LeftOutError(
            f"skipped: a dense call takes about {seconds:.3g} s, more than --dense-limit-s {session.dense_limit_s:g}"
        )


def _fitting(session: Session, entries: list[_Entry]) -> list[_Entry]:
    """Return the contenders whose rounds fit together; the most expensive ones are left out, and keep the reason."""

    def needed(entry: _Entry) -> float:
        return session.pace.needed(entry.seconds)

    kept = list(entries)
    while kept and sum(map(needed, kept)) > session.budget.left:
        worst = max(kept, key=needed)
        assert worst.call is not None, "it was prepared"
        start = time.perf_counter()
        worst.call()  # the first call may have compiled
        _wait(session.device)
        seconds = time.perf_counter() - start
        if seconds < 0.5 * worst.seconds:
            worst.seconds = seconds
            continue
        worst.reason = budget.no_time("timing it", needed(worst), session.budget.left)
        kept.remove(worst)
    return kept


def _timed(session: Session, entries: Sequence[_Entry]) -> Times:
    calls: dict[str, Callable[[], object]] = {}
    for entry in entries:
        assert entry.call is not None, "it was prepared"
        calls[entry.one.name] = entry.call
        if entry.one.routing is not None:
            calls[ROUTING + entry.one.name] = entry.one.routing
    if session.device == "cpu":
        pace, warm = session.pace, {entry.one.name: entry.seconds for entry in entries}
        return timing.interleaved(calls, pace.rounds, turn=pace.turn, long=pace.long, warm=warm)
    from bench.gpu import clock
    from bench.gpu.report import Setup

    for call in calls.values():
        call()
    return clock.interleaved(calls, session.pace.rounds, Setup("cuda", False, False))


def _wait(device: str) -> None:
    """Wait for the device, so that what it met is raised here."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _record(session: Session, setting: Setting, entry: _Entry, times: Times | None, fastest: str | None) -> Record:
    """Return the record of a contender; without times, of one that has none."""
    one = entry.one
    flops, nbytes = setting.flops(one.computes), setting.bytes(one.computes)
    config, source = None, None
    if one.backend is not None and one.problem is not None:
        config, source = configs.used(one.backend, one.problem, OPERATIONS_OF[setting.mode])
    summary = None if times is None else times.summary(one.name)
    return session.run.fields() | setting.fields() | {
        "contender": one.name,
        "kind": one.kind,
        "computes": one.computes,
        "requested": one.name,
        "used": None if summary is None else one.name,
        "note": one.note,
        "config": config,
        "config_source": source,
        "seconds": None if summary is None else asdict(summary),
        "rounds": session.pace.rounds if summary is not None else 0,
        "routing": None if times is None else _routing(times, one.name),
        "useful_flops": flops,
        "useful_bytes": nbytes,
        "tflops": None if summary is None else flops / summary.median / 1e12,
        "roofline": None if summary is None else peaks(session.device, setting.dtype, session.threads).record(
            flops, nbytes, summary.median
        ),
        "dense": None if times is None or fastest is None else _dense(times, setting, one, fastest),
        "memory": entry.memory,
        "refcheck": entry.refcheck,
        "reason": entry.reason,
    }  # fmt: skip


def _routing(times: Times, name: str) -> Record | None:
    alone = ROUTING + name
    if alone not in times.seconds:
        return None
    return {"seconds": times.summary(alone).median, "share": times.ratio(alone, name).median}


def _dense(times: Times, setting: Setting, one: Contender, fastest: str) -> Record | None:
    if one.computes == "dense" or setting.mode == "route":
        return None
    speedup = times.ratio(fastest, one.name)
    return {
        "contender": fastest,
        "speedup": asdict(speedup),
        "share": speedup.median / setting.pair_ratio,
    }
