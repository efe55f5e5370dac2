"""The command: measure the cases, print a table, append the records, judge."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bench import dense, machine
from bench.cpu import measure, table
from bench.cpu.cases import CASES, Case
from bench.refcheck import RefcheckError
from sparsemoc.backends import get_backend
from sparsemoc.spec.errors import SparsemocError

#: Size of --quick: it tries the machinery, its figures mean nothing.
QUICK_TOKENS, QUICK_HEADS, QUICK_ROUNDS = 512, 2, 2

#: Columns of the table where no terminal says how many there are.
TABLE_WIDTH = 120


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="python -m bench.cpu", description="Time the cases beside dense attention.")
    made.add_argument("--case", nargs="+", choices=tuple(CASES), default=list(CASES), metavar="NAME", dest="cases",
                      help=f"cases to run, of {', '.join(CASES)} (default: all)")  # fmt: skip
    made.add_argument("--backend", default="numba", help="backend to time (default: %(default)s)")
    made.add_argument("--rounds", type=int, default=7, help="rounds of each measurement (default: %(default)s)")
    made.add_argument("--out", type=Path, metavar="FILE", help="JSON lines to append to "
                      "(default: bench/results/<machine>/<date>.jsonl)")  # fmt: skip
    made.add_argument("--quick", action="store_true", help="tiny sizes, two rounds, nothing judged; "
                      "written only where --out says so")  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a table, append the records; return 1 if a check failed, 2 if the wish cannot be met."""
    asked = parser().parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    try:
        get_backend(asked.backend, "bench")
    except SparsemocError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    cases = [CASES[name] for name in asked.cases]
    if asked.quick:
        cases = [case.shrunk(QUICK_TOKENS, QUICK_HEADS) for case in cases]
    setting = measure.Setting(asked.backend, QUICK_ROUNDS if asked.quick else asked.rounds)
    if dense.ABSENT:
        console.print(f"skipped: {dense.ABSENT}", style="yellow")
    out = asked.out or (None if asked.quick else _default_out())
    records, wrong = [], 0
    for case in cases:
        try:
            for record in _modes(case, setting):
                records.append(record | {"quick": asked.quick})
                console.print(table.line(record), highlight=False, soft_wrap=True)
                if out is not None:
                    _append(out, records[-1])
        except RefcheckError as error:
            wrong += 1
            console.print(f"not published: {error}", style="red", markup=False)
    console.print(table.of(records))
    console.print(f"written to {out}" if out is not None else "not written: --quick without --out", style="dim")
    return 1 if wrong or any(check["met"] is False for record in records for check in record["checks"]) else 0


def _modes(case: Case, setting: measure.Setting) -> Iterator[measure.Record]:
    """Yield the records of a case."""
    if case.sizes:
        yield from measure.growth(case, setting)
        yield measure.peak_memory(case, setting)
        return
    yield measure.forward(case, setting)
    if case.gradients:
        yield measure.gradients(case, setting)


def _default_out() -> Path:
    return machine.ROOT / "bench" / "results" / machine.slug() / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"


def _append(path: Path, record: measure.Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
