"""Measure the crossover: `python -m bench.crossover`, from the root of the checkout."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bench import host, machine, record
from bench.crossover import grid, table
from bench.crossover.measure import How, Measured, measured
from bench.run import budget
from bench.run.budget import Budget, Pace
from sparsemoc.backends import Problem, get_backend
from sparsemoc.spec.errors import SparsemocError, UnsupportedError
from sparsemoc.tuning import crossover_store
from sparsemoc.tuning.crossover import Crossover, Point
from sparsemoc.tuning.key import Environment, environment_of

PACE = Pace(rounds=3, turn=0.2, long=1.0)
#: Of --quick, which tries the machinery: its figures mean nothing.
QUICK_LENGTHS, QUICK_PACE = (256, 512), Pace(rounds=2, turn=0.01, long=0.05)
#: Columns of the table where no terminal says how many there are.
TABLE_WIDTH = 120
#: The package's data, in a checkout.
DATA = machine.ROOT / "sparsemoc" / "tuning" / "data"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench.crossover",
        description="Measure from which length and up to which density a backend is faster than dense attention.",
    )
    made.add_argument("--backend", default="numba", help="backend to measure (default: %(default)s)")
    made.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float32",
                      help="of the arrays (default: %(default)s)")  # fmt: skip
    made.add_argument("--head-dim", type=int, default=64, help="channels of a head (default: %(default)s)")
    made.add_argument("--heads", type=int, default=4, help="heads of both sides (default: %(default)s)")
    made.add_argument("--longest", type=int, default=grid.LONGEST, metavar="N",
                      help="tokens of the longest stream (default: %(default)s)")  # fmt: skip
    made.add_argument(
        "--rounds", type=int, default=PACE.rounds, help="rounds of each measurement (default: %(default)s)"
    )
    made.add_argument("--budget-s", type=float, default=240.0, help="seconds for everything: a length that does not "
                      "fit is skipped (default: %(default)s)")  # fmt: skip
    made.add_argument("--out", type=Path, metavar="FILE", help="JSON lines to append to "
                      "(default: bench/results/<machine>/crossover/<date>.jsonl)")  # fmt: skip
    made.add_argument("--quick", action="store_true", help="two short lengths, nothing kept; "
                      "written only where --out says so")  # fmt: skip
    made.add_argument("--ship", action="store_true", help="write the package's data, too")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; return 1 if a result is wrong, 2 if the wish cannot be met."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = parser().parse_args(arguments)
    if asked.quick and asked.ship:
        parser().error("--ship: the figures of --quick mean nothing and are not shipped")
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    try:
        how, environment = _how(asked, shlex.join(["python", "-m", "bench.crossover", *arguments]))
    except SparsemocError as error:
        say(str(error), "red")
        return 2
    out = asked.out or (None if asked.quick else record.default_out("crossover", host.slug(how.device)))
    lengths, wrong = [], False
    for one in _lengths(how, asked, say):
        lengths.append(one)
        for line in one.records:
            if line["reason"] is not None:
                bad = line["reason"].startswith("wrong")
                wrong |= bad
                say(f"{line['problem']}, {line['contender']}: {line['reason']}", "red" if bad else "yellow")
            if out is not None:
                record.append(out, line)
    console.print(table.of(lengths))
    say("records not written: --quick without --out" if out is None else f"records written to {out}", "dim")
    found = crossover_of(lengths, how, environment)
    if found is None:
        say("no crossover: there is no length with two densities and a dense attention that were measured", "red")
        return 1 if wrong else 2
    for sentence in table.sentences(found):
        say(sentence)
    _keep(found, environment, asked, say)
    return 1 if wrong else 0


def _how(asked: argparse.Namespace, command: str) -> tuple[How, Environment]:
    """Return how everything is measured, and where.

    Raises:
        SparsemocError: the backend is absent or refuses, or a size breaks a rule.
    """
    backend = get_backend(asked.backend, "bench.crossover")
    able = backend.capabilities
    device = "cuda" if "cuda" in able.devices and host.device() == "cuda" else "cpu"
    problem = Problem(
        plan=grid.problems(grid.SHORTEST, asked.heads, asked.head_dim)[0].plan(),
        framework="numpy" if "numpy" in able.frameworks else "torch",
        device=device, dtype=asked.dtype, batch=1, heads=asked.heads, kv_heads=asked.heads, head_dim=asked.head_dim,
        v_head_dim=asked.head_dim,
    )  # fmt: skip
    reason = backend.refuses(problem)
    if reason is not None:
        raise UnsupportedError(f"bench.crossover: {backend.name} {reason} ({problem}).")
    threads = host.threads(device)
    run = record.Run(command=command, commit=machine.commit(), quick=asked.quick, machine=host.facts(device, threads),
                     versions=host.versions())  # fmt: skip
    pace = QUICK_PACE if asked.quick else dataclasses.replace(PACE, rounds=asked.rounds)
    how = How(
        backend=backend, dtype=asked.dtype, device=device, threads=threads, heads=asked.heads, head_dim=asked.head_dim,
        pace=pace, run=run,
    )  # fmt: skip
    return how, environment_of(backend, problem)


def _lengths(how: How, asked: argparse.Namespace, say: Callable[[str, str], None]) -> Iterator[Measured]:
    """Yield what was measured of each length that the budget has room for, and say what is skipped."""
    left, last = Budget(asked.budget_s), None
    for tokens in QUICK_LENGTHS if asked.quick else grid.lengths(asked.longest):
        if last is not None:
            needed, room = foreseen(last, tokens, how), left.left
            if needed > room:
                say(budget.no_time(f"{tokens:,} tokens", needed, room), "yellow")
                continue
        last = measured(grid.problems(tokens, how.heads, how.head_dim), how, last.candidates if last else None)
        yield last
        if last.dense is None:
            return


def foreseen(last: Measured, tokens: int, how: How) -> float:
    """Return the seconds that a length takes, by what a shorter one took: calls grow with the square, checks do not."""
    longer = tokens / last.tokens
    timed = sum(how.pace.needed(seconds) for seconds in last.seconds.values())
    calls = sum(how.pace.needed(seconds * longer**2) for seconds in last.seconds.values())
    return calls + longer * max(0.0, last.spent - timed)


def crossover_of(lengths: Sequence[Measured], how: How, environment: Environment) -> Crossover | None:
    """Return the crossover of what was measured, None where no length has two densities."""
    whole = [one for one in lengths if len({_kept(point).density for point in one.points.values()}) > 1]
    if not whole:
        return None
    return Crossover(
        backend=environment.backend,
        architecture=environment.architecture,
        device=environment.device,
        versions=environment.versions,
        threads=how.threads if how.device == "cpu" else 0,
        heads=how.heads,
        dtype=how.dtype,
        head_dim=how.head_dim,
        dense=", ".join(sorted({one.dense for one in whole if one.dense is not None})),
        points=tuple(_kept(point) for one in whole for point in one.points.values()),
        command=how.run.command,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _kept(point: Point) -> Point:
    """Return a point in as many digits as mean something: people read it, and compare it from release to release."""
    return Point(point.tokens, round(point.density, 5), float(f"{point.speedup:.4g}"))


def _keep(
    found: Crossover, environment: Environment, asked: argparse.Namespace, say: Callable[[str, str], None]
) -> None:
    if asked.quick:
        say("not kept: the figures of --quick mean nothing", "dim")
        return
    reason = crossover_store.save(environment, found)
    if reason is None:
        say(f"kept for `sparsemoc explain` in {crossover_store.place(environment)}", "dim")
    else:
        say(f"not kept for `sparsemoc explain`: {reason}", "yellow")
    if asked.ship:
        say(f"shipped in {crossover_store.ship(found, DATA)}", "dim")
