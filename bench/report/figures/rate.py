"""Rate: useful operations a second against the size of a chunk, below the peak of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

from bench.report import wording
from bench.report.figures.axes import apart, legend_of
from bench.report.looks import INK, Looks
from bench.report.picture import Idea, Legend, Picture
from bench.report.records import Record
from bench.report.results import Results, without_slow_dense

#: The modes of a picture side by side.
_PICTURES = (("forward", "forward+backward"), ("attend",))


def _pictures(results: Results, looks: Looks) -> Iterator[Picture]:
    every = (*results.problems, *results.crossover)
    found = [record for record in without_slow_dense(every) if record["tflops"] is not None]
    for modes, dtype in product(_PICTURES, sorted({record["dtype"] for record in found})):
        mine = [record for record in found if record["dtype"] == dtype and record["mode"] in modes]
        if not any(record["kind"] == "backend" for record in mine):
            continue
        peaks = [record for record in mine if record["roofline"] is not None]
        notes = (f"Peak: {peaks[-1]['roofline']['how']}.",) if peaks else ("The machine's peak was not measured.",)
        yield Picture(
            name=wording.slug(f"rate-{modes[0]}-{dtype}"),
            title="Useful operations a second by chunk size",
            subtitle=f"{dtype}; operations of the kept pairs, of the fastest dense contender those of the dense pairs; "
            "routing counts as time, not as operations",
            how="Higher is better; a mark at the dashed line would use the machine's measured peak to the full.",
            records=mine,
            height=3.8,
            paint=partial(_paint, records=mine, looks=looks),
            notes=notes,
        )


def _paint(figure: Any, records: Sequence[Record], looks: Looks) -> Legend:
    modes = sorted({record["mode"] for record in records})
    peaks = [record["roofline"]["flops_per_s"] / 1e12 for record in records if record["roofline"] is not None]
    peak = peaks[-1] if peaks else None
    top = max([record["tflops"] for record in records] + ([peak] if peak else []))
    scale, unit = (1.0, "TFLOP/s") if top >= 1 else (1e3, "GFLOP/s")
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        mine = [record for record in records if record["mode"] == mode]
        for name in looks.order(record["contender"] for record in mine):
            points = [(r["chunk"], scale * r["tflops"]) for r in mine if r["contender"] == name]
            axes.plot(
                *zip(*points, strict=True), linestyle="none", markersize=8, **looks[name].line, label=looks.label(name)
            )
        if peak:
            axes.axhline(scale * peak, color=INK, linestyle="--", linewidth=1.2)
            axes.annotate(
                f"measured peak {wording.digits(scale * peak)}", (0, scale * peak), (4, 3),
                xycoords=("axes fraction", "data"), textcoords="offset points", size=9,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        ticks = apart([round(record["chunk"]) for record in mine], 0.07 * len(modes))
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set(title=mode, xlabel="keys of a chunk (mean)", ylim=(0, 1.13 * scale * top))
    panels[0].set_ylabel(unit)
    return legend_of(*panels)


IDEA = Idea("Useful operations a second by chunk size", "python -m bench.run", False, _pictures)
