"""Speed-up: how many times as fast as the fastest dense kernel, beside what the kept pairs allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from bench.report import wording
from bench.report.figures.axes import legend_of, problem_rows, size_of, word_ticks
from bench.report.looks import BACKWARD, FORWARD, IDEAL, INK, RULE, Looks
from bench.report.picture import Idea, Legend, Picture
from bench.report.records import Record
from bench.report.results import Results, Setting, settings

_MODES = {"forward": FORWARD, "forward+backward": BACKWARD}


class _Row(NamedTuple):
    """A problem: its setting, and the record of each mode that was compared with dense attention."""

    setting: Setting
    records: dict[str, Record]

    @property
    def best(self) -> float:
        return max(float(record["dense"]["speedup"]["median"]) for record in self.records.values())


def _pictures(results: Results, looks: Looks) -> Iterator[Picture]:
    found = [setting for setting in settings(results.problems) if setting.mode in _MODES]
    ours = [r for setting in found for r in setting.records if r["kind"] == "backend"]
    for contender in looks.order(record["contender"] for record in ours):
        for dtype in sorted({r["dtype"] for r in ours if r["contender"] == contender}):
            rows, left_out = _rows([setting for setting in found if setting.dtype == dtype], contender)
            if rows:
                yield _picture(rows, left_out, contender, dtype)


def _rows(found: Sequence[Setting], contender: str) -> tuple[list[_Row], list[str]]:
    """Return the rows of a backend, fastest first, and the problems that have its time but none of dense attention."""
    rows: dict[str, _Row] = {}
    left_out = []
    for setting in found:
        for record in setting.records:
            if record["contender"] != contender:
                continue
            if record["dense"] is None:
                left_out.append(f"{setting.problem} {setting.mode}")
            else:
                rows.setdefault(setting.problem, _Row(setting, {})).records[setting.mode] = record
    return sorted(rows.values(), key=lambda row: -row.best), left_out


def _picture(rows: list[_Row], left_out: list[str], contender: str, dtype: str) -> Picture:
    peers = sorted({record["dense"]["contender"] for row in rows for record in row.records.values()})
    return Picture(
        name=wording.slug(f"speedup-{contender}-{dtype}"),
        title="Speed-up over the fastest dense attention",
        subtitle=f"sparsemoc ({contender}), {dtype}, routing included; dense: the fastest there of {', '.join(peers)}",
        how="A bar is how many times as fast as dense attention, its whisker the 20th to 80th percentile; the black "
        "tick is the ideal, dense pairs over kept pairs: a bar that reaches it spends on a kept pair what dense does.",
        records=[record for row in rows for record in row.records.values()],
        height=0.9 + 0.52 * len(rows),
        paint=partial(_paint, rows=rows),
        notes=(f"No dense time to compare with: {', '.join(left_out)}.",) if left_out else (),
    )


def _paint(figure: Any, rows: Sequence[_Row]) -> Legend:
    """Draw bars that begin at 1, on a logarithmic axis: twice as fast is as long as twice as slow."""
    axes = figure.subplots()
    axes.set_xscale("log")
    modes = [mode for mode in _MODES if any(mode in row.records for row in rows)]
    thick = 0.76 / len(modes)
    ends = [1.0]
    for row, (_, records) in enumerate(rows):
        for number, mode in enumerate(modes):
            if mode not in records:
                continue
            dense, ideal = records[mode]["dense"], records[mode]["pair_ratio"]
            value, low, high = (dense["speedup"][name] for name in ("median", "p20", "p80"))
            y = row + (number - (len(modes) - 1) / 2) * thick
            axes.barh(y, value - 1, thick * 0.94, left=1, color=_MODES[mode], label=mode)
            axes.plot([low, high], [y, y], color=INK, linewidth=1)
            axes.plot([ideal, ideal], [y - thick * 0.47, y + thick * 0.47], color=IDEAL, linewidth=2.5)
            axes.annotate(
                f"{wording.times(value)}   {wording.percent(dense['share'])} of the ideal {wording.times(ideal)}",
                (max(high, ideal), y), (7, 0), textcoords="offset points", va="center", size=8, color=INK,
            )  # fmt: skip
            ends += [low, value, high, ideal]
    axes.plot([], [], "|", color=IDEAL, markersize=10, markeredgewidth=2.5, label="ideal: dense pairs / kept pairs")
    axes.axvline(1, color=RULE, linewidth=1)
    problem_rows(axes, [row.setting for row in rows], [size_of(row.setting) for row in rows])
    least, most = 0.85 * min(ends), max(ends)
    axes.set(
        xlabel="times as fast as dense attention (left of 1x: slower)", xlim=(least, most * (most / least) ** 0.52)
    )
    word_ticks(axes.xaxis, lambda value: f"{value:g}x")
    return legend_of(axes)


IDEA = Idea("Speed-up over the fastest dense attention", "python -m bench.run", True, _pictures)
