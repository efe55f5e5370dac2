"""Routing: which share of the forward goes to pooling, scores and selection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bench.report import wording
from bench.report.figures.axes import apart, legend_of, problem_rows
from bench.report.looks import FORWARD, Looks
from bench.report.picture import Idea, Legend, Picture
from bench.report.records import Record
from bench.report.results import Results, Setting, settings

_HOW_MANY = 3  # numbers of chunks from which on a curve says something
_TITLE = "Routing as a share of the forward"


def _known(record: Record) -> bool:
    return record["mode"] == "forward" and record["kind"] == "backend" and record["routing"] is not None


def _pictures(results: Results, looks: Looks) -> Iterator[Picture]:
    found = [setting for setting in settings(results.problems) if any(_known(r) for r in setting.records)]
    pairs = [(setting, r) for setting in found for r in setting.records if _known(r)]
    for name, dtype in dict.fromkeys((record["contender"], record["dtype"]) for _, record in pairs):
        mine = [pair for pair in pairs if (pair[1]["contender"], pair[1]["dtype"]) == (name, dtype)]
        rows = sorted(mine, key=lambda pair: -float(pair[1]["routing"]["share"]))
        yield Picture(
            name=wording.slug(f"routing-{name}-{dtype}"),
            title=_TITLE,
            subtitle=f"sparsemoc ({name}), {dtype}: pooling, scores and selection, of a forward that contains them",
            how="A bar is the part of the forward's time that choosing chunks takes; the rest is attention.",
            records=[record for _, record in rows],
            height=0.6 + 0.44 * len(rows),
            paint=partial(_bars, rows=rows),
        )
    yield from _by_chunks([r for r in (*results.problems, *results.crossover) if _known(r)], looks)


def _bars(figure: Any, rows: Sequence[tuple[Setting, Record]]) -> Legend:
    axes = figure.subplots()
    shares = [100 * float(record["routing"]["share"]) for _, record in rows]
    axes.barh(range(len(rows)), shares, 0.62, color=FORWARD)
    for row, (_, record) in enumerate(rows):
        text = f"  {wording.percent(shares[row] / 100)}   {wording.seconds(record['routing']['seconds'])}"
        axes.text(shares[row], row, text, va="center", size=9)
    details = [f"{record['chunks']} chunks of {record['chunk']:,.0f}, top {record['top_k']}" for _, record in rows]
    problem_rows(axes, [setting for setting, _ in rows], details)
    axes.set(xlabel="% of the forward's time", xlim=(0, 1.3 * max(shares)))
    return {}


def _by_chunks(records: Sequence[Record], looks: Looks) -> Iterator[Picture]:
    for dtype in sorted({record["dtype"] for record in records}):
        mine = [record for record in records if record["dtype"] == dtype]
        if len({record["chunks"] for record in mine}) < _HOW_MANY:
            continue
        yield Picture(
            name=wording.slug(f"routing-by-chunks-{dtype}"),
            title=f"{_TITLE}, by number of chunks",
            subtitle=f"{dtype}; every problem and every point of the crossover grid",
            how="Each mark is one problem: the more chunks there are to choose from, the more choosing costs.",
            records=mine,
            height=3.4,
            paint=partial(_scatter, records=mine, looks=looks),
        )


def _scatter(figure: Any, records: Sequence[Record], looks: Looks) -> Legend:
    axes = figure.subplots()
    for name in looks.order(record["contender"] for record in records):
        points = [(r["chunks"], 100 * r["routing"]["share"]) for r in records if r["contender"] == name]
        axes.plot(
            *zip(*points, strict=True), linestyle="none", markersize=8, **looks[name].line, label=looks.label(name)
        )
    axes.set_xscale("log", base=2)
    ticks = apart([record["chunks"] for record in records])
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set(xlabel="chunks", ylabel="% of the forward's time")
    axes.set_ylim(0)
    return legend_of(axes)


IDEA = Idea(_TITLE, "python -m bench.run", False, _pictures)
