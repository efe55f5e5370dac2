"""Records as rows of the page's tables: every figure, also of those that have no time, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.report import provenance, wording
from bench.report.records import Record, median


class Cell(NamedTuple):
    """A text, the number it is sorted by, and whether it is code."""

    text: str
    order: float | None = None
    code: bool = False


_NONE = Cell("")

COLUMNS = (
    "problem", "mode", "dtype", "contender", "median", "p20 to p80", "tokens", "heads measured", "density",
    "useful TFLOP/s", "share of roofline", "speed-up over dense", "ideal", "routing", "extra memory", "largest error",
    "config from", "time", "why there is no time", "note", "command",
)  # fmt: skip

CPU_COLUMNS = ("case", "mode", "backend", "dtype", "tokens", "heads", "median", "p20 to p80", "dense", "pair ratio",
               "checks", "time", "command")  # fmt: skip


def cells(record: Record) -> list[Cell]:
    """Return the row of a record of a problem."""
    return [
        Cell(record["problem"]),
        Cell(record["mode"]),
        Cell(record["dtype"]),
        Cell(_contender(record)),
        *_times(record["seconds"]),
        Cell(f"{record['tokens']:,}", record["tokens"]),
        Cell(wording.heads(record), record["heads"]),
        Cell(wording.percent(record["density"]), record["density"]),
        _number(record["tflops"]),
        _share(record["roofline"]),
        _speedup(record["dense"]),
        Cell(wording.times(record["pair_ratio"]), record["pair_ratio"]),
        _share(record["routing"]),
        _NONE if record["memory"] is None else _bytes(record["memory"]["peak_extra_bytes"]),
        error(record["refcheck"]),
        Cell(_sources(record["config_source"])),
        Cell(record["time"]),
        Cell(record["reason"] or ""),
        Cell(record.get("note") or ""),
        Cell(provenance.command(record), code=True),
    ]


def cpu_cells(record: Record) -> list[Cell]:
    """Return the row of a record of `bench.cpu`."""
    checks = [check for check in record.get("checks", ()) if check["value"] is not None]
    return [
        Cell(record["case"]),
        Cell(record["mode"]),
        Cell(record["backend"]),
        Cell(record["dtype"]),
        Cell(f"{record['tokens']:,}", record["tokens"]),
        Cell(str(record["heads"]), record["heads"]),
        *_times(record["seconds"].get("ours")),
        _dense(record),
        Cell(wording.times(record["pair_ratio"]), record["pair_ratio"]),
        Cell("; ".join(_check(check) for check in checks)),
        Cell(record["time"]),
        Cell(provenance.command(record), code=True),
    ]


def error(refcheck: Mapping[str, Any] | None) -> Cell:
    """Return the largest error of what was held against float64, and of which array."""
    found = [
        (float(value["error"]), name)
        for name, value in (refcheck or {}).items()
        if isinstance(value, dict) and isinstance(value.get("error"), (int, float))
    ]
    if not found:
        return Cell("not checked" if refcheck is None else "")
    largest, name = max(found)
    return Cell(f"{largest:.1e} ({name})", largest)


def _contender(record: Record) -> str:
    used = record.get("used")
    return record["contender"] if used in (None, record["contender"]) else f"{record['contender']} (used {used})"


def _times(seconds: Mapping[str, float] | None) -> tuple[Cell, Cell]:
    if seconds is None:
        return _NONE, _NONE
    between = f"{wording.seconds(seconds['p20'])} to {wording.seconds(seconds['p80'])}"
    return Cell(wording.seconds(seconds["median"]), seconds["median"]), Cell(between, seconds["p20"])


def _number(value: float | None) -> Cell:
    return _NONE if value is None else Cell(wording.digits(value), value)


def _share(of: Mapping[str, Any] | None) -> Cell:
    if of is None or of["share"] is None:
        return _NONE
    bound = f" ({of['bound']})" if "bound" in of else ""
    return Cell(f"{wording.percent(of['share'])}{bound}", of["share"])


def _speedup(dense: Mapping[str, Any] | None) -> Cell:
    if dense is None:
        return _NONE
    value, low, high = (dense["speedup"][name] for name in ("median", "p20", "p80"))
    text = f"{wording.times(value)} ({wording.times(low)} to {wording.times(high)}) over {dense['contender']}"
    return Cell(text, value)


def _bytes(number: int) -> Cell:
    return Cell(wording.size(number), number)


def _sources(sources: Mapping[str, str] | None) -> str:
    return ", ".join(f"{operation}: {source}" for operation, source in (sources or {}).items())


def _dense(record: Record) -> Cell:
    """Return the time of dense attention; one that was extrapolated is marked."""
    measured, extrapolated = record["seconds"].get("dense"), record.get("dense")
    if measured is not None:
        return Cell(wording.seconds(median({"seconds": measured})), measured["median"])
    if extrapolated is None:
        return _NONE
    mark = "" if extrapolated["extrapolated_from"] is None else " (extrapolated, not measured)"
    return Cell(f"{wording.seconds(extrapolated['seconds'])}{mark}", extrapolated["seconds"])


def _check(check: Mapping[str, Any]) -> str:
    asked = (
        ""
        if check["required"] is None
        else f" (asked {check['required']:g}{', missed' if check['met'] is False else ''})"
    )
    return f"{check['what']} {wording.digits(check['value'])}{asked}"
