"""The command: look at the device, run the sections, write every row, print a table, judge."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench import machine
from bench.gpu import facts, processes, table
from bench.gpu.processes import Task
from bench.gpu.report import Row, Setup, row
from bench.gpu.requirements import DEVICES, judges
from bench.gpu.sections import MOST_WORKERS, NAMES, Section, batches, tasks

#: Seconds for a process to import torch and look at the device.
LOOK_SECONDS = 120.0
#: Seconds that --quick gives to a section.
QUICK_SECONDS = 600.0
#: What can be measured.
BACKENDS = ("triton", "cupy")
#: Columns where no terminal says how many there are.
WIDTH = 130


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="Check and measure a GPU backend on one GPU."
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="write JSON lines there, a file for each run "
                      "(default: nowhere)")  # fmt: skip
    made.add_argument("--budget-s", type=float, default=540.0, metavar="S",
                      help="seconds for everything; what no longer fits is skipped (default: %(default)g)")  # fmt: skip
    made.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME",
                      help=f"sections, of {', '.join(NAMES)} (default: all)")  # fmt: skip
    made.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0],
                      help="what is measured (default: %(default)s); cupy beside triton")  # fmt: skip
    made.add_argument("--quick", action="store_true", help="tiny sizes, nothing judged: tries the machinery; on a CPU "
                      "with TRITON_INTERPRET=1 or SPARSEMOC_CUPY_EMULATE=1")  # fmt: skip
    made.add_argument("--no-prepare", action="store_true", help="do not compile ahead in several processes")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 if all holds, 1 if a check, a figure or a section failed or is missing, 2 if nothing can run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = parser().parse_args(arguments)
    started = time.monotonic()
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    found, reason = _looked(asked.quick, asked.backend)
    if reason is not None:
        console.print(f"bench.gpu: {reason}", style="red", markup=False)
        return 2
    judged = judges(found["device"]) and not asked.quick
    setup = Setup("cuda" if found["cuda"] else "cpu", asked.quick, judged, asked.backend)
    about = facts.of_run(found, arguments, asked.quick)
    out = None if asked.out is None else asked.out / facts.file_name(about)
    console.print(table.about(about), markup=False)
    if not setup.judged:
        console.print(f"nothing is judged: {'--quick' if asked.quick else f'not a device named {DEVICES.pattern}'}",
                      style="yellow", markup=False)  # fmt: skip
    rows = []
    for one in _measured(asked, setup, started + asked.budget_s):
        rows.append(one)
        console.print(table.line(one), style=table.style(one), markup=False, highlight=False, soft_wrap=True)
        if out is not None:
            _append(out, one | about)
    missing = table.missing(rows, asked.only, setup) if setup.judged else []
    table.summary(console, rows, missing, time.monotonic() - started)
    console.print(f"written to {out}" if out is not None else "not written: no --out", style="dim", markup=False)
    return 1 if missing or table.failures(rows) else 0


def _looked(quick: bool, backend: str) -> tuple[Row, str | None]:
    """Return the facts, and why nothing can run here, or None."""
    if importlib.util.find_spec("torch") is None:
        return {}, "torch is not installed"
    task = Task("facts", "bench.gpu.facts:look", Setup("cpu", quick, False, backend))
    received = list(processes.run([task], 1, LOOK_SECONDS))
    told = [one for one in received if one["name"] == facts.NAME]
    if not told:
        return {}, "; ".join(one["reason"] for one in received) or "the device could not be looked at"
    found: Row = told[0]["detail"]
    if not found["cuda"] and not quick:
        return found, (
            "torch finds no CUDA device: there is nothing to measure. --quick tries the machinery on a CPU, with "
            "TRITON_INTERPRET=1 or SPARSEMOC_CUPY_EMULATE=1 set"
        )
    if found["backend_absent"] is not None:
        return found, f"the backend {backend} is absent: {found['backend_absent']}"
    return found, None


def _measured(asked: argparse.Namespace, setup: Setup, deadline: float) -> Iterator[Row]:
    """Yield the rows of all sections that fit, and a row for each that does not."""
    workers = max(1, min(MOST_WORKERS, machine.cores() - 2))
    # One process at a time gains nothing by it, and on a CPU nothing is compiled.
    ahead = setup.cuda and not asked.no_prepare and workers > 1
    for batch in batches(asked.only, ahead):
        left = deadline - time.monotonic()
        fitting = [section for section in batch if setup.quick or left >= section.least_s]
        for section in batch:
            if section not in fitting:
                reason = f"takes {section.least_s:.0f} s at least, and {max(left, 0):.0f} s of --budget-s are left"
                yield row("skip", section.name, section.name, "all", reason=reason)
        if fitting:
            yield from _batch(fitting, asked.only, setup, workers, left)


def _batch(batch: Sequence[Section], wanted: Sequence[str], setup: Setup, workers: int, left: float) -> Iterator[Row]:
    """Yield the rows of sections that run at the same time, and how long they took together."""
    # --quick is there to be seen through, and an interpreter takes its time.
    limit = QUICK_SECONDS if setup.quick else min(left, max(section.most_s for section in batch))
    start = time.monotonic()
    for one in processes.run(tasks(batch, wanted, setup, workers, limit), workers, limit):
        # What cannot be compiled ahead is compiled, or fails, in its own section.
        yield one | {"kind": "skip"} if one["section"] == "prepare" else one
    names = ", ".join(section.name for section in batch)
    yield row("time", batch[-1].name, names, "all together", value=time.monotonic() - start, unit="s")


def _append(path: Path, record: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
