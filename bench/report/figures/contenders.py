"""Contenders: the time of everyone on every problem, in units of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bench.report import wording
from bench.report.figures.axes import problem_rows, size_of, word_ticks
from bench.report.looks import FAINT, RULE, Looks
from bench.report.picture import Idea, Legend, Picture
from bench.report.records import median
from bench.report.results import Results, Setting, settings


def _pictures(results: Results, looks: Looks) -> Iterator[Picture]:
    found = [setting for setting in settings(results.problems) if setting.ours and len(setting.records) > 1]
    for mode, dtype in dict.fromkeys((setting.mode, setting.dtype) for setting in found):
        mine = [setting for setting in found if (setting.mode, setting.dtype) == (mode, dtype)]
        yield Picture(
            name=wording.slug(f"contenders-{mode}-{dtype}"),
            title=f"All contenders: {mode}",
            subtitle=f"{dtype}; median time in units of the fastest of our backends on the same problem",
            how="A mark at 3 took three times as long as sparsemoc, one left of the dashed line was faster; the "
            "text at the right is our own time.",
            records=[record for setting in mine for record in setting.records],
            height=0.95 + 0.46 * len(mine),
            paint=partial(_paint, rows=mine, looks=looks),
        )


def _paint(figure: Any, rows: Sequence[Setting], looks: Looks) -> Legend:
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.axvline(1, color=RULE, linestyle="--", linewidth=1, zorder=0.5)
    drawn: dict[str, Any] = {}
    for row, setting in enumerate(rows):
        assert setting.ours is not None, "only settings with one are drawn"
        own = median(setting.ours) or 0.0
        quotients = {record["contender"]: (median(record) or 0.0) / own for record in setting.records}
        axes.plot([min(quotients.values()), max(quotients.values())], [row, row], color="#d0d0d6", zorder=0.8)
        for name, value in quotients.items():
            drawn[name] = axes.plot(value, row, linestyle="none", markersize=9, **looks[name].line)[0]
        axes.annotate(
            wording.seconds(own), (1, row), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", size=9,
        )  # fmt: skip
    problem_rows(axes, rows, [size_of(setting) for setting in rows])
    low, high = axes.get_xlim()
    axes.set(xlabel="time / our time (right: slower than sparsemoc)", xlim=(min(low, 0.8), max(high, 1.25)))
    word_ticks(axes.xaxis, lambda value: f"{value:g}x")
    axes.annotate("our time", (1, 1), (6, 0), xycoords="axes fraction", textcoords="offset points", size=8, color=FAINT)
    names = looks.order(drawn)
    return {looks.label(name): drawn[name] for name in names}


IDEA = Idea("All contenders", "python -m bench.run", False, _pictures)
