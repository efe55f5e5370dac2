"""Axes that several pictures share: tokens in powers of two, times in words, rows of problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.report import wording
from bench.report.looks import FAINT
from bench.report.picture import Legend
from bench.report.results import Setting


def tokens_axis(axes: Any, tokens: Sequence[float], room: float = 0.07) -> None:
    """Make the x axis one of tokens, logarithmic, with ticks where something was measured; see `apart` for `room`."""
    axes.set_xscale("log", base=2)
    ticks = apart(tokens, room)
    axes.set_xticks(ticks, [wording.count(n) for n in ticks])
    axes.set_xlabel("tokens")


def apart(values: Sequence[float], room: float = 0.07) -> list[float]:
    """Return those of some values whose labels do not touch on a logarithmic axis, each `room` of it wide."""
    least = (max(values) / min(values)) ** room
    kept: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not kept or value * least <= kept[-1]:
            kept.append(value)
    return kept[::-1]


def word_ticks(axis: Any, word: Any) -> None:
    """Write the ticks of a logarithmic axis in words."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    # Few decades have room for ticks between the tens.
    between = (1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0) if high / low < 300 else (1.0,)
    axis.set_major_locator(LogLocator(10, subs=between, numticks=16))
    axis.set_major_formatter(FuncFormatter(lambda value, _: word(value)))
    axis.set_minor_locator(NullLocator())


def problem_rows(axes: Any, settings: Sequence[Setting], detail: Sequence[str]) -> None:
    """Write problems at the y axis, one below the other, each with a detail in small print below its name."""
    axes.set_yticks(range(len(settings)), [f"{setting.problem}\n" for setting in settings], linespacing=1.2)
    for row, text in enumerate(detail):
        axes.annotate(
            text, (0, row), (-7, -7), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="center", size=8, color=FAINT,
        )  # fmt: skip
    axes.set_ylim(len(settings) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def size_of(setting: Setting) -> str:
    """Return the size of a problem in small print."""
    first = setting.records[0]
    queries = "" if first["queries"] == first["tokens"] else f"{wording.count(first['queries'])} queries, "
    return f"{queries}{wording.count(first['tokens'])} tokens, {wording.heads(first)}"


def legend_of(*panels: Any) -> Legend:
    """Return what is labelled in panels, each label once."""
    handles = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels)
    return {label: handle for panel in handles for handle, label in panel}
