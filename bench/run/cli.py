"""The command: choose problems, measure them in turn, write each record as it comes, print a table."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import host, machine, record
from bench.inputs import MODES, Mode
from bench.record import Record
from bench.run import table
from bench.run.budget import Budget, Pace, expected_pairs
from bench.run.measure import Session, measure
from bench.run.tuned import MOST_CONFIGS, QUICK_CONFIGS, Tuner
from sparsemoc.backends.registry import available_backends, backend_names, get_backend
from sparsemoc.spec.errors import SparsemocError, SpecError
from sparsemoc.tuning.problems import PROBLEMS, NamedProblem, named

DTYPES = ("float32", "bfloat16", "float16")
#: Problems of --quick; the first is measured in every mode, and in half precision too.
QUICK_PROBLEMS = ("paper/single-shot", "cogvideox-5b/480p", "moba/32k", "decode/new-shot")
#: Size, and where Triton's interpreter takes part; pace, seconds of everything and of tuning, with --quick and without.
QUICK_TOKENS, QUICK_HEADS = 256, 2
INTERPRETED_TOKENS = 64
QUICK_PACE, PACE = Pace(2, 0.02, 0.05), Pace(5, 0.2, 1.0)
QUICK_BUDGET, BUDGET = 90.0, 1800.0
QUICK_TUNING, TUNING = 12.0, 300.0
DENSE_LIMIT = 30.0
#: Columns of the table where no terminal says how many there are.
WIDTH = 160


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench.run", description="Measure backends and peers on named problems."
    )
    add = made.add_argument
    add("--problem", nargs="+", metavar="NAME", help=f"names or patterns, of {', '.join(PROBLEMS)} (default: all, the "
        "cheapest first, as far as the time goes)")  # fmt: skip
    add("--backend", nargs="+", metavar="NAME", help="backends (default: all; one that refuses gets a line)")
    add("--dtype", nargs="+", choices=DTYPES, help="dtypes (default: float32 on the CPU, bfloat16 on CUDA)")
    add(
        "--mode",
        nargs="+",
        choices=MODES,
        help="what is timed (default: forward and forward+backward; --quick: all of one problem)",
    )
    add("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    add("--peers", action=argparse.BooleanOptionalAction, default=True, help="whether to time what others compute")
    add("--peer", nargs="+", default=[], metavar="MODULE:FUNCTION", help="more peers: see bench/peers/entry.py")
    add("--rounds", type=int, help=f"rounds of each setting (default: {PACE.rounds}; --quick: {QUICK_PACE.rounds})")
    add("--heads", type=int, metavar="N", help="heads to measure (default: as many as fit the time)")
    add("--budget-s", type=float, metavar="S", help=f"seconds for everything (default: {BUDGET:g}; --quick: "
        f"{QUICK_BUDGET:g}); what does not fit is skipped, with its reason")  # fmt: skip
    add("--dense-limit-s", type=float, default=DENSE_LIMIT, metavar="S", help="most seconds of a dense call "
        "(default: %(default)g)")  # fmt: skip
    add("--tune-budget-s", type=float, metavar="S", help=f"seconds of tuning (default: {TUNING:g}; --quick: "
        f"{QUICK_TUNING:g})")  # fmt: skip
    add("--no-tune", action="store_true", help="tune nothing; configs that are known are taken all the same")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="whether to measure peak memory")
    add("--quick", action="store_true", help="tiny sizes: tries the machinery, the figures mean nothing; written only "
        "where --out says so")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="JSON lines to append to (default: "
        "bench/results/<machine>/problems/<date>.jsonl)")  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0, 1 if a result is wrong or a backend breaks, 2 if the wish cannot be met."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = parser().parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    try:
        session = _session(asked, shlex.join(["python", "-m", "bench.run", *arguments]), say)
        problems = chosen(asked.problem, asked.quick, _interprets(session.device, session.backends))
    except SparsemocError as error:
        say(str(error), "red")
        return 2
    out = asked.out or (None if asked.quick else record.default_out("problems", host.slug(session.device)))
    records = []
    for one in _measured(asked, session, problems):
        records.append(one)
        say(table.line(one, session.budget.left), table.style(one))
        if out is not None:
            record.append(out, one)
    console.print(table.of(records))
    for told in table.without(records):
        say(told, "yellow")
    say(str(session.tuner))
    timed = sum(one["seconds"] is not None for one in records)
    say(f"{timed} of {len(records)} timed, {session.budget.left:.0f} s of --budget-s left; "
        + (f"written to {out}" if out is not None else "not written: --quick without --out"), "dim")  # fmt: skip
    return 1 if any(map(table.bad, records)) else 0


def chosen(patterns: Sequence[str] | None, quick: bool, interpreted: bool = False) -> list[NamedProblem]:
    """Return the problems of names or patterns, the cheapest first; tiny copies with --quick.

    Args:
        patterns: None for the default.
        quick: whether tiny copies are wanted.
        interpreted: whether Triton's interpreter takes part, so that they must be tinier.

    Raises:
        SpecError: a pattern fits no name.
    """
    names: dict[str, None] = {}
    for pattern in patterns or (QUICK_PROBLEMS if quick else ("*",)):
        found = [name for name in PROBLEMS if fnmatchcase(name, pattern)]
        names |= dict.fromkeys(found or [named(pattern).name])
    problems = [PROBLEMS[name] for name in names]
    if quick:
        return [one.shrunk(INTERPRETED_TOKENS if interpreted else QUICK_TOKENS, one.heads) for one in problems]
    return sorted(problems, key=lambda one: expected_pairs(one.plan(), 1) * one.head_dim)


def _interprets(device: str, names: Sequence[str]) -> bool:
    """Return whether Triton's interpreter is among the backends: kernels on the CPU, thousands of times slower."""
    return device == "cpu" and "triton" in names and available_backends()["triton"] is None


def _session(asked: argparse.Namespace, command: str, say: Callable[[str, str], None]) -> Session:
    quick, device = asked.quick, asked.device or host.device()
    host.check(device)
    names = asked.backend or list(backend_names())
    for name in names:
        if name not in backend_names():
            get_backend(name, "bench.run")  # raises, and says which there are
    threads, pace = host.threads(device), QUICK_PACE if quick else PACE
    heads = None if not quick else 1 if _interprets(device, names) else QUICK_HEADS
    tuning = asked.tune_budget_s or (QUICK_TUNING if quick else TUNING)
    progress = (lambda line: say(line, "dim")) if sys.stdout.isatty() else None
    return Session(
        run=record.Run(command=command, commit=machine.commit(), quick=quick, machine=host.facts(device, threads),
                       versions=host.versions()),
        device=device,
        threads=threads,
        backends=names,
        peers=list(_peers(asked)),
        pace=pace if asked.rounds is None else replace(pace, rounds=asked.rounds),
        heads=asked.heads or heads,
        budget=Budget(asked.budget_s or (QUICK_BUDGET if quick else BUDGET)),
        tuner=Tuner(0 if asked.no_tune else tuning, QUICK_CONFIGS if quick else MOST_CONFIGS, progress),
        dense_limit_s=asked.dense_limit_s,
        memory=asked.memory,
    )  # fmt: skip


def _peers(asked: argparse.Namespace) -> Iterator[Callable[..., Any]]:
    if asked.peers:
        yield import_module("bench.peers").peers
    for name in asked.peer:
        module, _, function = name.partition(":")
        if not function or importlib.util.find_spec(module) is None:
            raise SpecError(
                f"bench.run: --peer must be module:function of a module that can be imported, got {name!r}."
            )
        yield import_module("bench.peers.entry").loaded(name)


def _measured(asked: argparse.Namespace, session: Session, problems: Sequence[NamedProblem]) -> Iterator[Record]:
    for problem, dtype, modes in _settings(asked, session.device, problems):
        yield from measure(session, problem, dtype, modes)


def _settings(
    asked: argparse.Namespace, device: str, problems: Sequence[NamedProblem]
) -> Iterator[tuple[NamedProblem, str, Sequence[Mode]]]:
    """Yield each problem and dtype with its modes; with --quick a bit of every problem comes first."""
    first, half = ("float32", "bfloat16") if device == "cpu" else ("bfloat16", "float16")
    dtypes = asked.dtype or [first]
    if not asked.quick:
        for problem in problems:
            for dtype in dtypes:
                yield problem, dtype, asked.mode or MODES[:2]
        return
    modes: Sequence[Mode] = asked.mode or MODES
    for problem in problems:
        yield problem, dtypes[0], modes[:1]
    for dtype in dtypes[1:] if asked.dtype else [half]:
        yield problems[0], dtype, modes[:1]
    if len(modes) > 1:
        yield problems[0], dtypes[0], modes[1:]
    for problem in problems[1:]:
        if len(modes) > 1:
            yield problem, dtypes[0], modes[1:2]
