"""Growth: the time of a call and of a kept pair as a stream grows shot by shot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bench.report import wording
from bench.report.figures.axes import tokens_axis, word_ticks
from bench.report.looks import Looks
from bench.report.picture import Idea, Legend, Picture
from bench.report.records import Record
from bench.report.results import Results

_DENSE = "#D55E00"


def lengths(results: Results) -> list[Record]:
    """Return the record of growth of each length, by length, of the backend measured last."""
    found = [record for record in results.cpu if record["mode"] == "growth"]
    mine = [record for record in found if record["backend"] == found[-1]["backend"]]
    return sorted(mine, key=lambda record: int(record["tokens"]))


def _pictures(results: Results, looks: Looks) -> Iterator[Picture]:
    records = lengths(results)
    if len(records) < 2:
        return
    last = records[-1]
    shots = [segment["tokens"] for segment in last["spec"]["stream"]["segments"] if segment["kind"] != "text"]
    yield Picture(
        name="growth",
        title="Near-linear growth with the length",
        subtitle=f"{last['heads']} heads of {last['head_dim']}, {last['dtype']}, shots of up to {max(shots):,} tokens, "
        f"chunks of {last['spec']['chunks']['size']}, top {last['spec']['top_k']}, one forward call with routing",
        how="A straight line at the left and a level one at the right mean that time grows with the tokens, not with "
        "their square.",
        records=records,
        height=3.5,
        paint=partial(_paint, records=records, looks=looks),
    )


def _paint(figure: Any, records: Sequence[Record], looks: Looks) -> Legend:
    whole, pair = figure.subplots(1, 2)
    tokens = [record["tokens"] for record in records]
    look = looks[records[-1]["backend"]]
    rows = [[record["seconds"]["ours"][name] for record in records] for name in ("median", "p20", "p80")]
    whole.plot(tokens, rows[0], "-", **look.line, label="sparsemoc")
    _dense(whole, records)
    whole.set(title="Time of one call", ylabel="time", yscale="log")
    whole.set_ylim(top=whole.get_ylim()[1] * 12)
    whole.legend(loc="upper left")
    word_ticks(whole.yaxis, lambda value: wording.seconds(value, "{:g}".format))
    median, low, high = ([1e9 * s / r["pairs"] for s, r in zip(row, records, strict=True)] for row in rows)
    pair.fill_between(tokens, low, high, color=look.colour, alpha=0.2, linewidth=0, label="20th to 80th percentile")
    pair.plot(tokens, median, "-", **look.line, label="median")
    pair.set(title="Time per kept (query, key) pair", ylabel="nanoseconds", ylim=(0, 1.4 * max(high)))
    pair.legend(loc="lower left")
    for axes in (whole, pair):
        tokens_axis(axes, tokens, 0.12)
    return {}


def _dense(axes: Any, records: Sequence[Record]) -> None:
    """Draw dense attention where it was measured, and dotted where its time is extrapolated."""
    known = [(r["tokens"], r["dense"]) for r in records if r.get("dense") is not None]
    measured = [(n, d["seconds"]) for n, d in known if d["extrapolated_from"] is None]
    beyond = [(n, d["seconds"]) for n, d in known if d["extrapolated_from"] is not None]
    if measured:
        label = "dense (torch SDPA), measured"
        axes.plot(*zip(*measured, strict=True), "s-", color=_DENSE, markeredgecolor="white", label=label)
    if beyond:
        line = [*measured[-1:], *beyond]
        label = "dense, extrapolated: not measured"
        axes.plot(*zip(*line, strict=True), ":", color=_DENSE, label=label)


IDEA = Idea("Near-linear growth with the length", "python -m bench.cpu --case long", True, _pictures)
