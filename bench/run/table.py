"""Records as text: one line each while they come, and a table at the end.

Seconds are medians over the rounds; quotients of two times are medians of the quotients of each round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich import box
from rich.table import Table

from bench.record import Record


def line(record: Record, left_s: float) -> str:
    """Return what was measured, how far it is from float64, and the seconds that are left."""
    heads = f"{record['heads']} of {record['problem_heads']} heads"
    where = f"{record['problem']} {record['mode']} {record['dtype']}, {record['tokens']:,} tokens, {heads}"
    if record["seconds"] is None:
        told = record["reason"]
    else:
        dense = record["dense"]
        times = "" if dense is None else f", {dense['speedup']['median']:.3g} times as fast as {dense['contender']}"
        told = f"{seconds(record['seconds']['median'])}, {_rate(record)}{times}; {_errors(record)}"
    return f"[{left_s:4.0f} s left] {where}: {record['contender']}: {told}"


def style(record: Record) -> str:
    """Return the colour of a record's line."""
    if record["reason"] is None:
        return ""
    return "red" if bad(record) else "yellow"


def bad(record: Record) -> bool:
    """Return whether a record says that something is wrong: a result, or one of our backends breaks."""
    kind = (record["reason"] or "").partition(":")[0]
    return kind == "wrong" or (kind == "failed" and record["kind"] == "backend")


def of(records: Iterable[Record]) -> Table:
    """Return the table of what was timed."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("problem", "mode", "dtype", "heads", "contender"):
        made.add_column(name, justify="right" if name == "heads" else "left")
    for name in ("time", "TFLOP/s", "of roofline", "x dense", "of pair ratio", "routing", "memory"):
        made.add_column(name, justify="right")
    before = None
    for record in records:
        if record["seconds"] is None:
            continue
        setting = [record[name] for name in ("problem", "mode", "dtype")] + [
            f"{record['heads']}/{record['problem_heads']}"
        ]
        made.add_row(*([""] * 4 if setting == before else setting), *_figures(record))
        before = setting
    return made


def _figures(record: Record) -> list[str]:
    dense, routing, memory = record["dense"], record["routing"], record["memory"]
    bound = record["roofline"]["bound"]
    return [
        record["contender"],
        seconds(record["seconds"]["median"]),
        f"{record['tflops']:.3g}",
        f"{100 * record['roofline']['share']:.0f} % ({bound})",
        "-" if dense is None else f"{dense['speedup']['median']:.2f}",
        "-" if dense is None else f"{dense['share']:.2f}",
        "-" if routing is None else f"{100 * routing['share']:.1f} %",
        "-" if memory is None else f"{memory['peak_extra_bytes'] / 1e6:,.1f} MB",
    ]


def without(records: Iterable[Record]) -> list[str]:
    """Return why contenders have no time, each reason once with how many times it was met; want of time is one."""
    found: Counter[str] = Counter()
    for record in records:
        if record["reason"] is not None:
            limits = [limit for limit in ("--budget-s", "--dense-limit-s") if limit in record["reason"]]
            told = f"skipped by {limits[0]}, see above" if limits else f"{record['contender']}: {record['reason']}"
            found[told] += 1
    return [f"without a time ({count}): {told}" for told, count in found.items()]


def _rate(record: Record) -> str:
    roofline = record["roofline"]
    share = f"{100 * roofline['share']:.0f} % of the roofline ({roofline['bound']})"
    return f"{record['tflops']:.3g} useful TFLOP/s, {share}"


def _errors(record: Record) -> str:
    found = record["refcheck"]
    parts = [f"{name} {found[name]['error']:.1e}" for name in ("out", "lse", "dq", "dk", "dv") if name in found]
    errors = f", largest errors {', '.join(parts)}" if parts else ""
    return f"{found['rows']} rows checked, routes {found['routes']}{errors}"


def seconds(value: float) -> str:
    """Return a time with its unit."""
    scale, unit = next((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if value >= s or s == 1e-6)
    return f"{value / scale:.3g} {unit}"
