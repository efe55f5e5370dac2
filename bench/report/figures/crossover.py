"""Crossover: from which length and density on Mixture of Contexts is faster than dense attention."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bench.report import wording
from bench.report.figures.axes import tokens_axis, word_ticks
from bench.report.looks import INK, Looks
from bench.report.picture import Idea, Legend, Picture
from bench.report.records import Record
from bench.report.results import Results

#: Purple: slower than dense, orange: faster; told apart by the colour-blind.
_COLOURS = "PuOr_r"
_TRIANGLE = 3


class _Point(NamedTuple):
    tokens: int
    density: float
    speedup: float


def _pictures(results: Results, looks: Looks) -> Iterator[Picture]:
    found = [r for r in results.crossover if r["kind"] == "backend" and r["dense"] is not None]
    kinds = sorted({(record["mode"], record["dtype"], record["head_dim"]) for record in found})
    for name in looks.order(record["contender"] for record in found):
        for kind in kinds:
            mine = [r for r in found if (r["contender"], r["mode"], r["dtype"], r["head_dim"]) == (name, *kind)]
            if mine:
                yield _picture(mine, name, *kind)


def _picture(records: Sequence[Record], name: str, mode: str, dtype: str, head_dim: int) -> Picture:
    points = [_Point(r["tokens"], r["density"], r["dense"]["speedup"]["median"]) for r in records]
    peers = sorted({record["dense"]["contender"] for record in records})
    faster = sum(point.speedup > 1 for point in points)
    return Picture(
        name=wording.slug(f"crossover-{name}-{mode}-{dtype}-d{head_dim}"),
        title="Where Mixture of Contexts is faster than dense",
        subtitle=f"sparsemoc ({name}), {mode} with routing, {dtype}, {wording.heads(records[-1])} of "
        f"{head_dim}; faster at {faster} of {len(points)} points; dense: {', '.join(peers)}",
        how="Every dot was measured, its number is the speed-up over dense attention; orange is faster, the black line "
        "is where both are equally fast, and colours between dots are interpolated.",
        records=records,
        height=4.0,
        paint=partial(_paint, points=points),
        notes=("Dots: measured. Colours and the line between them: interpolated. Hatched: not measured.",),
    )


def _paint(figure: Any, points: Sequence[_Point]) -> Legend:
    from matplotlib.colors import Normalize

    axes = figure.subplots()
    axes.grid(visible=False)
    axes.use_sticky_edges = False
    axes.margins(x=0.1, y=0.08)
    # Without colour is where nothing was measured; white is where both are equally fast.
    axes.patch.set(facecolor="#f1f1f4", hatch="////", edgecolor="#d9d9df", linewidth=0)
    axes.set(yscale="log", ylabel="density: share of all pairs kept")
    tokens, density = [point.tokens for point in points], [point.density for point in points]
    tokens_axis(axes, tokens)
    logs = [math.log2(point.speedup) for point in points]
    widest = max(1.0, *(abs(value) for value in logs))
    scale = Normalize(-widest, widest)
    if _spread(points):
        shades = _surface(axes, [math.log2(n) for n in tokens], [math.log2(d) for d in density], logs, scale)
    else:
        shades = axes.scatter(tokens, density, c=logs, cmap=_COLOURS, norm=scale, s=160, zorder=2)
    axes.scatter(tokens, density, color=INK, s=12, zorder=3)
    for point in points:
        axes.annotate(
            wording.times(point.speedup), (point.tokens, point.density), (6, 0), textcoords="offset points",
            va="center", size=8, color=INK, zorder=4,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "alpha": 0.72, "linewidth": 0},
        )  # fmt: skip
    word_ticks(axes.yaxis, lambda value: f"{100 * value:g} %")
    _colourbar(figure, axes, shades, widest)
    return {}


def _spread(points: Sequence[_Point]) -> bool:
    """Return whether points span an area: at least three, not in one line."""
    x, y = [math.log2(p.tokens) for p in points], [math.log2(p.density) for p in points]
    if len(points) < _TRIANGLE:
        return False
    far = max(range(len(points)), key=lambda i: abs(x[i] - x[0]) + abs(y[i] - y[0]))
    areas = [abs((x[far] - x[0]) * (y[i] - y[0]) - (y[far] - y[0]) * (x[i] - x[0])) for i in range(len(points))]
    return max(areas) > 1e-2


def _surface(axes: Any, x: list[float], y: list[float], logs: list[float], scale: Any) -> Any:
    """Draw the colours between points, and the line of equal speed."""
    from matplotlib.tri import LinearTriInterpolator, TriAnalyzer, Triangulation

    # Triangles are chosen where both logarithms count alike, and drawn in tokens and density.
    plane = Triangulation(x, y)
    plane.set_mask(TriAnalyzer(plane).get_flat_tri_mask(0.02))
    across, up = np.meshgrid(np.linspace(min(x), max(x), 301), np.linspace(min(y), max(y), 301))
    values = LinearTriInterpolator(plane, logs)(across, up)
    shades = axes.pcolormesh(2.0**across, 2.0**up, values, cmap=_COLOURS, norm=scale, shading="gouraud", zorder=1)
    if min(logs) < 0 < max(logs):
        axes.contour(2.0**across, 2.0**up, values, levels=[0.0], colors=[INK], linewidths=2, zorder=2)
    return shades


def _colourbar(figure: Any, axes: Any, shades: Any, widest: float) -> None:
    reach = math.floor(widest)
    ticks = list(range(-reach, reach + 1, max(1, reach // 4)))
    bar = figure.colorbar(shades, ax=axes, pad=0.02, fraction=0.05)
    bar.set_ticks(ticks, labels=[f"{2**tick}x" if tick >= 0 else f"1/{2**-tick}x" for tick in ticks])
    bar.set_label("speed-up over dense attention")
    bar.outline.set_visible(False)


IDEA = Idea("Where Mixture of Contexts is faster than dense", "python -m bench.crossover", True, _pictures)
