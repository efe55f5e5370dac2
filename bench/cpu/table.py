"""Records as text: one line each while they come, and a table at the end.

Seconds are medians over the rounds; quotients of two times are medians of the quotients of each round.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table

Record = dict[str, Any]

_MET = {True: "[green]yes[/]", False: "[red]NO[/]", None: "-"}


def line(record: Record) -> str:
    """Return what was measured and how far it is from the oracle."""
    checked = record["refcheck"]
    errors = ", ".join(f"{name} {checked[name]['absolute']:.1e}" for name in ("out", "lse", "dq") if name in checked)
    small = checked.get("small_copy")
    if small is not None:
        errors += f"; small copy: dk {small['dk']['absolute']:.1e}, dv {small['dv']['absolute']:.1e}"
    rate = "" if record["gflops"] is None else f"{record['gflops']:.3g} GFLOP/s, "
    return (
        f"{record['case']} {record['mode']}, {record['tokens']:,} tokens: {rate}pair ratio {record['pair_ratio']:.3g}; "
        f"largest error against float64 on {checked['rows']} rows: {errors}"
    )


def of(records: Iterable[Record]) -> Table:
    """Return the table of all records, a row for each figure."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "mode", "tokens", "ours", "dense", "figure", "value", "asked", "met"):
        made.add_column(name, justify="left" if name in ("case", "mode", "figure") else "right", no_wrap=True)
    for record in records:
        ours = _seconds(record["seconds"].get("ours", {}).get("median"))
        own = [record["case"], record["mode"], f"{record['tokens']:,}", ours, _dense(record)]
        for index, check in enumerate(record["checks"]):
            figures = (check["what"], _number(check["value"]), _number(check["required"]), _MET[check["met"]])
            made.add_row(*(own if index == 0 else [""] * len(own)), *figures)
    return made


def _dense(record: Record) -> str:
    measured = record["seconds"].get("dense", {}).get("median")
    extrapolated = record.get("dense")
    if measured is not None or extrapolated is None:
        return _seconds(measured)
    return ("" if extrapolated["extrapolated_from"] is None else "~") + _seconds(extrapolated["seconds"])


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
