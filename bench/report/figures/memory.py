"""Memory: the most that a call takes beyond its inputs, against the bytes of those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bench.report import wording
from bench.report.figures.axes import legend_of, word_ticks
from bench.report.looks import FAINT, RULE, Looks
from bench.report.picture import Idea, Legend, Picture
from bench.report.records import Record
from bench.report.results import Results

_MODES = ("forward", "forward+backward")
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def input_bytes(record: Record) -> int:
    """Return the bytes of q, k and v, and of the gradient of out where the backward is measured too."""
    keys = record["tokens"] * record["kv_heads"] * (record["head_dim"] + record["v_head_dim"])
    queries = record["queries"] * record["heads"] * record["head_dim"]
    gradient = record["queries"] * record["heads"] * record["v_head_dim"] if record["mode"] == "forward+backward" else 0
    return int(keys + queries + gradient) * _BYTES[record["dtype"]]


def _pictures(results: Results, looks: Looks) -> Iterator[Picture]:
    found = [r for r in results.problems if r["mode"] in _MODES and r["memory"] is not None and r["dtype"] in _BYTES]
    nothing = [r for r in found if not r["memory"]["peak_extra_bytes"] > 0]
    drawn = [r for r in found if r["memory"]["peak_extra_bytes"] > 0]
    if not drawn:
        return
    hows = dict.fromkeys(f"Memory: {record['memory']['how']}." for record in drawn)
    none = ", ".join(f"{record['contender']} on {record['problem']}" for record in nothing)
    yield Picture(
        name="memory",
        title="Memory of a call beyond its inputs",
        subtitle="peak of bytes that were not there before the call, out included, against the bytes of the inputs",
        how="A mark on the line 1x takes once more what its inputs take; lower is better, and marks along a line mean "
        "memory that grows in proportion.",
        records=drawn,
        height=3.8,
        paint=partial(_paint, records=drawn, looks=looks),
        notes=(*hows, *((f"Nothing beyond the inputs, not drawn: {none}.",) if none else ())),
    )


def _paint(figure: Any, records: Sequence[Record], looks: Looks) -> Legend:
    modes = [mode for mode in _MODES if any(record["mode"] == mode for record in records)]
    panels = figure.subplots(1, len(modes), sharey=True, sharex=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        mine = [record for record in records if record["mode"] == mode]
        for name in looks.order(record["contender"] for record in mine):
            points = [(input_bytes(r), r["memory"]["peak_extra_bytes"]) for r in mine if r["contender"] == name]
            axes.plot(
                *zip(*points, strict=True), linestyle="none", markersize=8, **looks[name].line, label=looks.label(name)
            )
        axes.set(xscale="log", yscale="log", title=mode, xlabel="bytes of the inputs")
    panels[0].set_ylabel("peak extra bytes")
    panels[0].margins(0.12)
    for axes in panels:
        _guides(axes)
    return legend_of(*panels)


def _guides(axes: Any) -> None:
    """Draw lines of equal quotients that cross the panel, and write the quotient at their upper end."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for quotient in (1 / 64, 1 / 16, 1 / 4, 1, 4, 16, 64):
        end = min(right, top / quotient)
        if end <= left * (right / left) ** 0.2 or quotient * end <= bottom * (top / bottom) ** 0.1:
            continue
        bold = quotient == 1
        axes.plot(
            [left, right], [quotient * left, quotient * right], color=RULE, linewidth=1.2 if bold else 0.6, zorder=0.6
        )
        text = f"{quotient:g}x" if quotient >= 1 else f"1/{1 / quotient:.0f}x"
        axes.annotate(text, (end, quotient * end), (-3, -3), textcoords="offset points", size=8, color=FAINT,
                      ha="right", va="top", backgroundcolor="white", zorder=0.7)  # fmt: skip
    axes.set(xlim=(left, right), ylim=(bottom, top))
    word_ticks(axes.xaxis, wording.size)
    word_ticks(axes.yaxis, wording.size)


IDEA = Idea("Memory of a call beyond its inputs", "python -m bench.run", False, _pictures)
