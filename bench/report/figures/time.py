"""Time against tokens: ours and the peers, with lines that grow as the kept pairs do, and as all pairs do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from bench.report import wording
from bench.report.figures.axes import legend_of, tokens_axis, word_ticks
from bench.report.looks import INK, RULE, Looks
from bench.report.picture import Idea, Legend, Picture
from bench.report.records import Record, median
from bench.report.results import Results, Setting, settings, without_slow_dense

_LENGTHS = 3  # from which on a line says how time grows
_ALIKE = 1.05  # quotient of dense and kept pairs, over the lengths, up to which both grow alike
_MODES = ("forward", "forward+backward")
_TITLE = "Time against tokens"


def _pictures(results: Results, looks: Looks) -> Iterator[Picture]:
    yield from _grid(results, looks)
    found = [s for s in settings(results.problems) if s.mode in _MODES and s.ours is not None]
    for mode, dtype in dict.fromkeys((setting.mode, setting.dtype) for setting in found):
        mine = [setting for setting in found if (setting.mode, setting.dtype) == (mode, dtype)]
        if len({setting.records[0]["tokens"] for setting in mine}) < _LENGTHS:
            continue
        yield Picture(
            name=wording.slug(f"time-problems-{mode}-{dtype}"),
            title=f"{_TITLE}: {mode} of the named problems",
            subtitle=f"{dtype}, median of one call for each head; of dense contenders the fastest alone",
            how="One column of marks is one problem; a cross is where our time would be if it "
            "grew from the shortest problem on as kept pairs do, a plus where dense time would be if it grew as "
            "dense pairs do.",
            records=without_slow_dense(record for setting in mine for record in setting.records),
            height=4.2,
            paint=partial(_problems, mine=mine, looks=looks),
        )


def _problems(figure: Any, mine: Sequence[Setting], looks: Looks) -> Legend:
    records = without_slow_dense(record for setting in mine for record in setting.records)
    own = [setting.ours for setting in mine if setting.ours is not None]
    dense = [record for record in records if record["computes"] == "dense"]
    axes = figure.subplots()
    for name in looks.order(record["contender"] for record in records):
        points = [(r["tokens"], _of_head(r)) for r in records if r["contender"] == name]
        axes.plot(
            *zip(*points, strict=True), linestyle="none", markersize=8, **looks[name].line, label=looks.label(name)
        )
    _guide(axes, own, _kept_pairs, "in proportion to kept pairs", linestyle="none", marker="x", color=INK)
    _guide(axes, dense, _dense_pairs, "in proportion to dense pairs", linestyle="none", marker="+", color=INK)
    return _finish(axes, [record["tokens"] for record in records])


def _grid(results: Results, looks: Looks) -> Iterator[Picture]:
    """Yield, for each mode, dtype and head_dim, one row of the crossover grid, and dense attention at its lengths."""
    timed = [r for r in results.crossover if r["mode"] in _MODES and median(r) is not None]
    for kind in dict.fromkeys((record["mode"], record["dtype"], record["head_dim"]) for record in timed):
        mode, dtype, head_dim = kind
        same = [record for record in timed if (record["mode"], record["dtype"], record["head_dim"]) == kind]
        ours = _row([record for record in same if record["computes"] == "moc"])
        if len({record["tokens"] for record in ours}) < _LENGTHS:
            continue
        # What is dense is the same for each row of the grid, and may have been measured for one alone.
        dense = {(r["contender"], r["tokens"]): r for r in same if r["computes"] == "dense"}
        mine = sorted([*ours, *dense.values()], key=lambda record: int(record["tokens"]))
        last = max(ours, key=lambda record: int(record["tokens"]))
        yield Picture(
            name=wording.slug(f"time-grid-{mode}-{dtype}-d{head_dim}"),
            title=f"{_TITLE}: {mode}",
            subtitle=f"{dtype}, {last['heads']} heads of {head_dim}, {last['chunks']} chunks at the longest, "
            f"top {last['top_k']}: {_range([r['density'] for r in ours], wording.percent)} of all pairs",
            how="Both axes are logarithmic: a line as steep as the dashed one grows with the kept pairs, one as steep "
            "as the dotted one with the dense pairs (not drawn where they grow alike). Both run through our longest "
            "stream: above them a call pays more for a pair than there.",
            records=mine,
            height=4.2,
            paint=partial(_lines, records=mine, looks=looks),
        )


def _row(records: Sequence[Record]) -> list[Record]:
    """Return the row of the grid that has most lengths; of several, the one of a density closest to an eighth."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(str(record["problem"]).rpartition("/")[2], []).append(record)

    def rank(row: list[Record]) -> tuple[int, float]:
        return len({record["tokens"] for record in row}), -abs(math.log(8 * row[-1]["density"]))

    return max(rows.values(), key=rank, default=[])


def _lines(figure: Any, records: Sequence[Record], looks: Looks) -> Legend:
    axes = figure.subplots()
    names = looks.order(record["contender"] for record in records)
    for name in names:
        mine = [record for record in records if record["contender"] == name]
        tokens = [record["tokens"] for record in mine]
        low, high = ([r["seconds"][part] / r["heads"] for r in mine] for part in ("p20", "p80"))
        axes.fill_between(tokens, low, high, color=looks[name].colour, alpha=0.2, linewidth=0)
        axes.plot(tokens, [_of_head(r) for r in mine], markersize=7, **looks[name].line, label=looks.label(name))
    own = [record for record in records if record["contender"] == names[0]][::-1]
    ratios = [record["pair_ratio"] for record in own]
    if max(ratios) > _ALIKE * min(ratios):  # else the two guides are one
        _guide(axes, own, _dense_pairs, "in proportion to dense pairs", linestyle=":", color=RULE)
    _guide(axes, own, _kept_pairs, "in proportion to kept pairs", linestyle="--", color=INK)
    return _finish(axes, [record["tokens"] for record in records])


def _guide(axes: Any, records: Sequence[Record], work: Callable[[Record], float], label: str, **look: Any) -> None:
    """Draw what the time would be if it grew from the first of some records on as their work does."""
    if records:
        unit = _of_head(records[0]) / work(records[0])
        times = [unit * work(record) for record in records]
        axes.plot([r["tokens"] for r in records], times, linewidth=1.3, label=label, zorder=3, **look)


def _range(values: Sequence[float], word: Callable[[float], str]) -> str:
    return " to ".join(dict.fromkeys((word(min(values)), word(max(values)))))


def _of_head(record: Record) -> float:
    return (median(record) or 0.0) / float(record["heads"])


def _kept_pairs(record: Record) -> float:
    return float(record["pairs"] / record["heads"] * record["head_dim"])


def _dense_pairs(record: Record) -> float:
    return _kept_pairs(record) * float(record["pair_ratio"])


def _finish(axes: Any, tokens: Sequence[float]) -> Legend:
    axes.set_yscale("log")
    tokens_axis(axes, tokens)
    axes.set_ylabel("time of one head")
    word_ticks(axes.yaxis, lambda value: wording.seconds(value, "{:g}".format))
    return legend_of(axes)


IDEA = Idea(_TITLE, "python -m bench.run", False, _pictures)
