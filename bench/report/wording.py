"""Figures in words: seconds, quotients, counts and bytes, with three digits."""

from __future__ import annotations

import re
from collections.abc import Callable

from bench.report.records import Record


def seconds(value: float | None, number: Callable[[float], str] | None = None) -> str:
    """Return "524 ms", or "-" for None; `number` writes the number, `digits` where it is None."""
    if value is None:
        return "-"
    scale, unit = next((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (0.0, "ns")) if value >= s)
    return f"{(number or digits)(value / (scale or 1e-9))} {unit}"


def digits(value: float) -> str:
    """Return a number with three digits, or all those before the point, never as a power of ten."""
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.2g}"
    )


def times(value: float) -> str:
    """Return a quotient as "6.7x"."""
    return f"{digits(value) if value < 1 else f'{value:.1f}' if value < 99.5 else f'{value:,.0f}'}x"


def percent(share: float) -> str:
    """Return a share as "2.6 %"."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def count(number: float) -> str:
    """Return a count of tokens short, as on an axis: "4k", "131k"."""
    return f"{number:.0f}" if number < 1000 else f"{number / 1000:.0f}k" if number < 999_500 else f"{number / 1e6:.1f}M"


def size(number: float) -> str:
    """Return bytes as "12 MB"."""
    scale, unit = next((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if number >= s or s == 1)
    return f"{number / scale:.3g} {unit}"


def heads(record: Record) -> str:
    """Return how many heads were measured, and of how many where that is not all."""
    measured, of = record["heads"], record["problem_heads"]
    return f"{measured} of {of} heads" if measured != of else f"{measured} head" + "s" * (measured != 1)


def slug(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("+", " and ")).strip("-")
