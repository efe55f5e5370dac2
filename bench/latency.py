"""What a call costs beyond another: a record for each, a table, and the lines that `bench/results` keeps."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.timing import Summary, interleaved

Calls = Mapping[str, Callable[[], object]]


def parser(module: str, description: str, tokens: Sequence[int]) -> argparse.ArgumentParser:
    """Return the options that these benchmarks share."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    made.add_argument("--rounds", type=int, default=15, help="rounds of each measurement (default: %(default)s)")
    made.add_argument("--tokens", type=int, nargs="+", default=tokens, help="sizes, multiples of 8 (default: all)")
    return made


def report(cases: Mapping[str, Calls], rounds: int, facts: Mapping[str, Any]) -> None:
    """Measure every case; print a JSON line for each call, then a table."""
    records = []
    for case, calls in cases.items():
        for record in measure(case, calls, rounds):
            records.append(record)
            print(json.dumps(record | dict(facts)))
    Console(width=120).print(table(records))


def measure(case: str, calls: Calls, rounds: int) -> list[dict[str, Any]]:
    """Return a record for each call; `beyond` is what it takes more than the first, `ratio` how many times as long.

    Both are taken round by round.
    """
    times = interleaved(calls, rounds)
    first = next(iter(calls))
    records = []
    for name in calls:
        beyond = times.seconds[name] - times.seconds[first]
        figures = {"seconds": vars(times.summary(name)), "beyond": vars(_summary(beyond))}
        records.append({"case": case, "call": name, **figures, "ratio": vars(times.ratio(name, first))})
    return records


def _summary(values: Any) -> Summary:
    return Summary(*np.quantile(values, (0.5, 0.2, 0.8)).tolist())


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the records as a table."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "call", "microseconds", "20 % to 80 %", "beyond the first", "times the first"):
        made.add_column(name, justify="left" if name in ("case", "call") else "right", no_wrap=True)
    for record in records:
        seconds, beyond = record["seconds"], record["beyond"]
        spread = f"{1e6 * seconds['p20']:,.0f} to {1e6 * seconds['p80']:,.0f}"
        figures = (f"{1e6 * seconds['median']:,.0f}", spread, f"{1e6 * beyond['median']:+,.0f}")
        made.add_row(record["case"], record["call"], *figures, f"{record['ratio']['median']:.3f}")
    return made
