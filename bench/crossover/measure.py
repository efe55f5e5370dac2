"""One length: every problem of it and every dense attention in the same rounds, each checked before it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import sparsemoc as moc
from bench import configs, timing
from bench.inputs import Inputs, inputs
from bench.peers import Outputs, Unavailable, peers
from bench.record import Record, Run, Setting
from bench.refcheck import Question, RefcheckError
from bench.roofline import peaks
from bench.run import checks, contenders
from bench.run.budget import Pace
from bench.run.contenders import OPERATIONS_OF, Contender, LeftOutError
from bench.timing import Times
from sparsemoc.backends import Backend
from sparsemoc.tuning.crossover import Point
from sparsemoc.tuning.problems import NamedProblem

#: A dense attention that takes so many times as long as the fastest is not measured at longer lengths.
HOPELESS = 3.0


@dataclass(frozen=True, kw_only=True)
class How:
    """How every length is measured.

    Attributes:
        backend: ours.
        dtype, device: of the arrays.
        threads: of either side, on the CPU.
        heads, head_dim: of either side.
        pace: of the timing.
        run: what the records share.
    """

    backend: Backend
    dtype: str
    device: str
    threads: int
    heads: int
    head_dim: int
    pace: Pace
    run: Run


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """What came out of a length.

    Attributes:
        tokens: the length.
        points: of each problem that gave what it should.
        seconds: of a call, by name of a contender or problem.
        dense: the fastest dense attention, None without any.
        candidates: dense attentions worth measuring at a longer length.
        spent: seconds of everything.
        records: of all contenders.
    """

    tokens: int
    points: dict[str, Point]
    seconds: dict[str, float]
    dense: str | None
    candidates: tuple[str, ...]
    spent: float
    records: tuple[Record, ...]


@dataclass(eq=False)
class _Entrant:
    """A contender in its setting: its call where it may be timed, else why not."""

    setting: Setting
    layout: moc.Layout
    one: Contender
    call: Callable[[], Outputs] | None = None
    reason: str | None = None
    refcheck: Record | None = None

    @property
    def name(self) -> str:
        """Of its times: a backend has a call to each problem, dense attention one to a length."""
        return self.setting.problem.name if self.one.kind == "backend" else self.one.name

    def check(self, host: Inputs) -> None:
        """Prepare the call, and keep it if it gives what it should."""
        setting = self.setting
        asked = Question(setting.problem.name, setting.problem.spec, host)
        try:
            call = self.one.prepare()
            given = {**(self.one.more() if self.one.more is not None else {}), **call()}
            self.refcheck = checks.check(asked, setting, self.layout, self.one, given)
            self.call = call
        except LeftOutError as error:
            self.reason = str(error)
        except Unavailable as error:
            self.reason = f"skipped: {error}"
        except RefcheckError as error:
            self.reason = f"wrong: {error}"


def measured(problems: Sequence[NamedProblem], how: How, dense: tuple[str, ...] | None) -> Measured:
    """Measure a length.

    Args:
        problems: all of one length, heads and head_dim; one of them keeps all pairs.
        how: see `How`.
        dense: names of the dense attentions to measure, None for all there are.
    """
    start = time.monotonic()
    x = inputs(problems[0], how.dtype, how.device)
    ours = [_ours(problem, x, how.backend) for problem in problems]
    beside = [
        one for one in _dense(max(ours, key=lambda one: one.setting.density), x) if dense is None or one.name in dense
    ]
    entrants, host = [*ours, *beside], x.on_host()
    for one in entrants:
        one.check(host)
    times = _timed({one.name: one.call for one in entrants if one.call is not None}, how)
    seconds = {name: times.summary(name).median for name in times.seconds}
    timed = {one.name: seconds[one.name] for one in beside if one.name in seconds}
    fastest = min(timed, key=lambda name: timed[name], default=None)
    return Measured(
        tokens=problems[0].tokens,
        points={one.name: _point(one, times, fastest) for one in ours if fastest and one.name in seconds},
        seconds=seconds,
        dense=fastest,
        candidates=tuple(name for name in timed if timed[name] <= HOPELESS * min(timed.values())),
        spent=time.monotonic() - start,
        records=tuple(_record(one, times, fastest, how) for one in entrants),
    )


def _ours(problem: NamedProblem, x: Inputs, backend: Backend) -> _Entrant:
    # By whatever backend "auto" chooses: the routes tell how many pairs are kept, and are checked with the contender's.
    plan, layout = problem.plan(), moc.route(x.q, x.k, problem.spec)
    setting = Setting(
        problem=problem, problem_heads=problem.heads, plan=plan, dtype=x.dtype, mode="forward", pairs=layout.pairs(),
        density=layout.on_host().density(),
    )  # fmt: skip
    (one,) = contenders.backends([backend.name], setting, x, layout)
    return _Entrant(setting, layout, one)


def _dense(beside: _Entrant, x: Inputs) -> list[_Entrant]:
    """Return every dense attention, as contenders of the problem that keeps all pairs too."""
    found = contenders.peers([peers], beside.setting, x, beside.layout)
    return [_Entrant(beside.setting, beside.layout, one) for one in found if one.computes == "dense"]


def _timed(calls: Mapping[str, Callable[[], Outputs]], how: How) -> Times:
    if how.device == "cpu":
        return timing.interleaved(calls, how.pace.rounds, turn=how.pace.turn, long=how.pace.long)
    from bench.gpu.clock import interleaved
    from bench.gpu.report import Setup

    for call in calls.values():
        call()
    return interleaved(calls, how.pace.rounds, Setup(how.device, quick=how.run.quick, judged=False))


def _point(one: _Entrant, times: Times, fastest: str) -> Point:
    return Point(one.setting.problem.tokens, one.setting.density, times.ratio(fastest, one.name).median)


def _record(entrant: _Entrant, times: Times, fastest: str | None, how: How) -> Record:
    """Return the record of a contender: see `bench.record`."""
    one, setting = entrant.one, entrant.setting
    flops, nbytes = setting.flops(one.computes), setting.bytes(one.computes)
    summary = times.summary(entrant.name) if entrant.name in times.seconds else None
    config, source = None, None
    if one.backend is not None and one.problem is not None:
        config, source = configs.used(one.backend, one.problem, OPERATIONS_OF[setting.mode])
    dense = None
    if summary is not None and fastest is not None and one.computes == "moc":
        ratio = times.ratio(fastest, entrant.name)
        dense = {"contender": fastest, "speedup": asdict(ratio), "share": ratio.median / setting.pair_ratio}
    return {
        **how.run.fields(), **setting.fields(),
        "contender": one.name, "kind": one.kind, "computes": one.computes, "note": one.note,
        "requested": one.name, "used": None if summary is None else one.name, "config": config, "config_source": source,
        "seconds": None if summary is None else asdict(summary), "rounds": 0 if summary is None else how.pace.rounds,
        "routing": None,
        "useful_flops": flops, "useful_bytes": nbytes,
        "tflops": None if summary is None else flops / summary.median / 1e12,
        "roofline": None if summary is None else peaks(how.device, how.dtype, how.threads).record(
            flops, nbytes, summary.median
        ),
        "dense": dense, "memory": None, "refcheck": entrant.refcheck, "reason": entrant.reason,
    }  # fmt: skip
