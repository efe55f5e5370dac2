"""The picture of a monitor: where routes go from shot to shot, and how layers or heads differ, at a glance."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.errors import LayoutError, SpecError, UnsupportedError, describe, did_you_mean
from sparsemoc.training.summary import LayerSummary, Summary

Floats = NDArray[np.float64]

#: In inches; 100 dots to an inch.
_WIDTH, _DPI, _MARGIN = 16.0, 100, 0.55
_TILES_IN_ROW, _WIDEST_TILE = 8, 3.4
_HEAD, _CURVES, _FOOT = 1.35, 2.3, 0.75
_CURVE_NAMES = (
    ("density", "share of all pairs attended to"),
    ("load entropy", "1: even, 0: one chunk"),
    ("dead chunks", "share never chosen"),
)
_INK, _FAINT, _LINE, _DOT, _CLOSED = "#1b1b1f", "#6b6b76", "#0b6fb8", "#9ecbe8", "#d8d8de"


@dataclass(frozen=True, eq=False)
class _Tile:
    """One matrix, its title, and one value per head for each curve."""

    name: str
    matrix: Floats
    open_shots: NDArray[np.bool_]
    values: tuple[Floats, Floats, Floats]


def draw(summary: Summary, layer: str | None) -> Any:
    """Return the Figure of all layers, or of the heads of one. See `Monitor.picture`."""
    if not summary.layers:
        raise LayoutError(
            "Monitor.picture: something must be recorded first, got nothing. Hint: record(layer, layout)."
        )
    if layer is not None and layer not in summary.layers:
        raise SpecError(
            f"Monitor.picture: layer must be one that was recorded, got {describe(layer)}."
            f"{did_you_mean(layer, summary.layers)}"
        )
    tiles = _tiles_of_layers(summary) if layer is None else _tiles_of_heads(summary[layer])
    sheet = _Sheet(len(tiles))
    figure = _matplotlib("figure").Figure(figsize=(_WIDTH, sheet.height), dpi=_DPI, facecolor="white")
    title = _cut(_title(list(summary.layers), layer), 92)
    figure.text(_MARGIN / _WIDTH, 1 - 0.42 / sheet.height, title, va="center", size=19, color=_INK)
    figure.text(_MARGIN / _WIDTH, 1 - 0.84 / sheet.height, _caption(summary, layer), va="center", size=13, color=_FAINT)
    most = max((float(tile.matrix.max(initial=0)) for tile in tiles), default=0.0) or 1.0
    for index, tile in enumerate(tiles):
        _draw_matrix(figure.add_axes(sheet.tile(index)), tile, most, outer=sheet.is_outer(index))
    _draw_scale(figure.add_axes(sheet.scale()), most)
    unit = "layer" if layer is None else "head"
    for number, names in enumerate(_CURVE_NAMES):
        _draw_curve(figure.add_axes(sheet.curve(number)), [tile.values[number] for tile in tiles], names, unit)
    return figure


def _tiles_of_layers(summary: Summary) -> list[_Tile]:
    return [
        _Tile(
            f"layer {index}" if name == str(index) else f"{index}   {name}",
            one.shot_matrix.mean(axis=0),
            one.open_shots,
            (one.density, one.load_entropy, one.dead_share),
        )
        for index, (name, one) in enumerate(zip(_short(list(summary.layers)), summary.layers.values(), strict=True))
    ]


def _short(names: list[str]) -> list[str]:
    """Return layer names without the dotted parts that all begin with and end with: "blocks.3.attn" is "3"."""
    parts = [name.split(".") for name in names]
    least = min(len(part) for part in parts) - 1
    head = next((n for n in range(least) if len({part[n] for part in parts}) > 1), least)
    tail = next((n for n in range(least - head) if len({part[-1 - n] for part in parts}) > 1), least - head)
    return [".".join(part[head : len(part) - tail]) for part in parts] if len(names) > 1 else names


def _tiles_of_heads(one: LayerSummary) -> list[_Tile]:
    return [
        _Tile(
            f"head {head}",
            matrix,
            one.open_shots,
            (one.density[[head]], one.load_entropy[[head]], one.dead_share[[head]]),
        )
        for head, matrix in enumerate(one.shot_matrix)
    ]


def _title(names: list[str], layer: str | None) -> str:
    if layer is not None:
        return f"Where each head of {layer} routes"
    return "Where each layer routes:  " + (names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}")


def _cut(text: str, most: int) -> str:
    """Return a text whose middle is left out where it is longer than `most`."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 + 1 :]}"


def _caption(summary: Summary, layer: str | None) -> str:
    layers = summary.layers.values() if layer is None else [summary[layer]]
    counts = sorted({one.samples for one in layers})
    samples = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    heads = ", mean over the heads" if layer is None else ""
    return (
        f"Share of the queries of a shot (row) with a route into another (column){heads}.   "
        f"Hatched: no route is allowed.   Samples recorded: {samples}."
    )


def _draw_matrix(axes: Any, tile: _Tile, most: float, *, outer: tuple[bool, bool]) -> None:
    shots = len(tile.matrix)
    axes.patch.set(facecolor="#f6f6f8", hatch="////", edgecolor=_CLOSED)
    if shots:
        shown = np.ma.masked_array(tile.matrix, ~tile.open_shots)
        axes.imshow(shown, cmap="GnBu", vmin=0, vmax=most, extent=(0, shots, shots, 0), aspect="equal")
    inches = axes.get_position().width * _WIDTH
    if shots and inches / shots > 0.34:
        size = min(11.0, 20 * inches / shots)
        for row, column in np.argwhere(tile.open_shots):
            share = float(tile.matrix[row, column])
            colour = "white" if share > 0.6 * most else _INK
            axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center", size=size, color=colour)
    step = max(1, -(-shots // 8))
    ticks = np.arange(0, shots, step)
    axes.set_xticks(ticks + 0.5, ticks if outer[1] else [""] * len(ticks))
    axes.set_yticks(ticks + 0.5, ticks if outer[0] else [""] * len(ticks))
    axes.tick_params(length=0, labelsize=9, labelcolor=_FAINT, pad=2)
    for side in axes.spines.values():
        side.set(color=_CLOSED)
    name = _cut(tile.name, max(6, int(inches * 11)))
    axes.set_title(name, size=10, color=_INK, pad=4, loc="left")


def _draw_scale(axes: Any, most: float) -> None:
    axes.imshow(np.linspace(0, 1, 128)[None], cmap="GnBu", aspect="auto", extent=(0, 100 * most, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 100 * most], ["0 %", f"{100 * most:.0f} %"])
    axes.tick_params(length=0, labelsize=10, labelcolor=_FAINT, pad=3)
    for side in axes.spines.values():
        side.set(visible=False)


def _draw_curve(axes: Any, values: Sequence[Floats], names: tuple[str, str], unit: str) -> None:
    places = np.arange(len(values))
    for place, heads in zip(places, values, strict=True):
        if len(heads) > 1:
            axes.plot([place] * len(heads), heads, "o", color=_DOT, ms=4, mew=0)
    means = [float(np.mean(heads)) for heads in values]
    axes.plot(places, means, "-o", color=_LINE, lw=1.8, ms=5 if len(values) <= 20 else 3, clip_on=False)
    top = 1.0 if names[0] == "load entropy" else max(float(np.max(heads)) for heads in values)
    axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, 1.08 * top if top else 1))
    axes.set_xticks(places[:: max(1, -(-len(values) // 16))])
    axes.set_title(names[0], size=14, color=_INK, loc="left", pad=8)
    axes.set_title(names[1], size=11, color=_FAINT, loc="right", pad=8)
    dots = "   (dots: heads)" if any(len(heads) > 1 for heads in values) else ""
    axes.set_xlabel(f"{unit}{dots}", size=11, color=_FAINT)
    axes.tick_params(labelsize=10, labelcolor=_FAINT, color=_CLOSED)
    axes.grid(axis="y", color="#ececf0")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=_CLOSED)


class _Sheet:
    """Places on the picture, in inches: rows of tiles, and below them three curves."""

    def __init__(self, tiles: int) -> None:
        self._in_row = min(tiles, _TILES_IN_ROW)
        self._tiles = tiles
        room = (_WIDTH - 2 * _MARGIN) / self._in_row
        self._side = min(room - 0.28, _WIDEST_TILE)
        self._step = (min(room, _WIDEST_TILE + 0.45), self._side + 0.42)
        self._rows = -(-tiles // self._in_row)
        self.height = _HEAD + self._rows * self._step[1] + 0.55 + _CURVES + _FOOT

    def tile(self, index: int) -> tuple[float, float, float, float]:
        row, column = divmod(index, self._in_row)
        return self._box(_MARGIN + column * self._step[0], _HEAD + row * self._step[1], self._side, self._side)

    def is_outer(self, index: int) -> tuple[bool, bool]:
        """Return whether a tile is the first of its row, and the last of its column."""
        return index % self._in_row == 0, index + self._in_row >= self._tiles

    def scale(self) -> tuple[float, float, float, float]:
        return self._box(_WIDTH - _MARGIN - 2.2, 0.32, 2.2, 0.2)

    def curve(self, number: int) -> tuple[float, float, float, float]:
        width = (_WIDTH - 2 * _MARGIN - 2 * 0.75) / 3
        top = self.height - _FOOT - _CURVES
        return self._box(_MARGIN + number * (width + 0.75), top, width, _CURVES)

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        bottom = self.height - top - height
        return left / _WIDTH, bottom / self.height, width / _WIDTH, height / self.height


def _matplotlib(part: str) -> Any:
    """Return a module of matplotlib; figures of its own make no use of pyplot, whose state is the user's."""
    try:
        return importlib.import_module(f"matplotlib.{part}")
    except ImportError as error:
        raise UnsupportedError(
            f"Monitor.picture: matplotlib must be installed to draw, but importing it failed ({error}). "
            "Hint: pip install matplotlib."
        ) from None
