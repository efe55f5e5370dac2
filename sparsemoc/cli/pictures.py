"""The pictures: where shots retrieve from, and what single patches retrieved, drawn on the real frames."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.video.errors import require
from sparsemoc.video.shots import PATCH, Frames, Shot

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

#: All pictures are 1600 pixels wide: 16 inches of 100 dots.
WIDTH, DPI = 16.0, 100
_INK, _FAINT, _QUERY, _FOUND = "#1b1b1f", "#6b6b76", "#ff1fa8", "#ffc400"


@dataclass(frozen=True, eq=False)
class Retrieved:
    """A chunk that a query chose.

    Attributes:
        shot: index of its shot.
        latent: latent frame that is drawn: the one in which the chunk has most attention.
        area: (height, width) patches of that frame that are in the chunk.
        attention: (height, width) the query's attention on them.
        score, share: of the whole chunk.
    """

    shot: int
    latent: int
    area: Bools
    attention: Floats
    score: float
    share: float


@dataclass(frozen=True, eq=False)
class Query:
    """A query patch, its head, what it retrieved, best score first, and how its attention is shared out."""

    shot: int
    latent: int
    row: int
    column: int
    head: int
    retrieved: tuple[Retrieved, ...]
    anchor_share: float
    routed_share: float

    @property
    def shown(self) -> tuple[Retrieved, ...]:
        """The chunks that a picture shows: the best six."""
        return self.retrieved[:6]

    @property
    def shown_share(self) -> float:
        """Their share of the query's attention."""
        return sum(item.share for item in self.shown)


def draw_matrix(shots: Sequence[Shot], matrix: Floats, reachable: Bools, caption: str, path: Path) -> None:
    """Write the shot x shot matrix: (shots, shots) shares in 0 ... 1; cells that no route may enter are hatched."""
    plot = _pyplot()
    count = len(shots)
    side = 1.9  # width of a thumbnail, in cells
    height = WIDTH * (count + 1.75) / (count + side + 1.6)
    figure = plot.figure(figsize=(WIDTH, min(height, WIDTH)), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.9))
    size = float(np.clip(150 / (count + 3), 6, 17))
    for row, shot in enumerate(shots):
        _, picture = shot.frame_of(shot.grid[0] // 2)
        _thumbnail(axes, picture, (-side, -0.1), (row + 0.06, row + 0.94))
        _thumbnail(axes, picture, (row + 0.04, row + 0.96), (-0.72, -0.06))
        axes.text(row + 0.5, -0.78, _two_lines(row, shot.label), ha="center", va="bottom", size=size * 0.9, color=_INK)
        axes.text(-side - 0.08, row + 0.5, _two_lines(row, shot.label), ha="right", va="center", size=size, color=_INK)
    colours = plot.get_cmap("GnBu")
    for row, column in np.ndindex(count, count):
        _cell(axes, (row, column), float(matrix[row, column]), bool(reachable[row, column]), colours, size)
    axes.text(count / 2, -1.36, "RETRIEVED FROM  →", ha="center", va="bottom", size=size, color=_FAINT)
    axes.text(-side - 1.5, count / 2, "QUERIES OF", rotation=90, ha="center", va="center", size=size, color=_FAINT)
    axes.set(xlim=(-side - 1.7, count + 0.08), ylim=(count + 0.08, -1.6))
    axes.set_aspect("equal")
    axes.axis("off")
    figure.suptitle(
        "Which shots do the patches of a shot retrieve from?", x=0.02, y=0.985, ha="left", size=24, color=_INK
    )
    figure.text(0.02, 0.925, caption, ha="left", va="center", size=15, color=_FAINT)
    _save(figure, path)


def _cell(axes: Any, place: tuple[int, int], share: float, reachable: bool, colours: Any, size: float) -> None:
    row, column = place
    shape = _patches().Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, lw=0)
    if not reachable:
        shape.set(facecolor="#f0f0f2", hatch="//", edgecolor="#d8d8de")
        label, colour = ("own shot" if row == column else "not allowed"), _FAINT
    else:
        shape.set(facecolor=colours(0.02 + 0.98 * share))
        label, colour = f"{100 * share:.0f} %", "white" if share > 0.6 else _INK
    axes.add_patch(shape)
    axes.text(
        column + 0.5, row + 0.5, label, ha="center", va="center", color=colour, size=size if reachable else size * 0.8
    )


def draw_query(shots: Sequence[Shot], query: Query, caption: str, path: Path) -> None:
    """Write a query patch and the chunks it retrieved, at most six, in order of score."""
    plot = _pyplot()
    found = query.shown
    shot = shots[query.shot]
    number, picture = shot.frame_of(query.latent)
    sheet = _Sheet(
        _ratio(picture), max((_ratio(shots[item.shot].frames[0]) for item in found), default=0.0), len(found)
    )
    figure = plot.figure(figsize=(WIDTH, sheet.height), dpi=DPI, facecolor="white")
    left = figure.add_axes(sheet.query())
    left.imshow(picture)
    _mark(left, query.row, query.column)
    title = f"shot {query.shot}  ·  {shot.label}  ·  frame {number}"
    left.set_title(f"QUERY   {title}", size=15, color=_QUERY, pad=10, loc="left")
    left.axis("off")
    _enlarge(figure, sheet, picture, query)
    strongest = max((float(item.attention.max()) for item in found), default=0.0)
    for index, item in enumerate(found):
        axes = figure.add_axes(sheet.found(index))
        source = shots[item.shot]
        number, picture = source.frame_of(item.latent)
        axes.imshow(_lit(picture, item.area, item.attention, strongest))
        _outline(axes, item.area)
        axes.set_title(f"{index + 1}.  shot {item.shot}  ·  {source.label}", size=13, color=_INK, pad=6, loc="left")
        text = f"frame {number}  ·  {100 * item.share:.1f} % of its attention"
        axes.text(0, -0.04, text, transform=axes.transAxes, ha="left", va="top", size=12, color=_FAINT)
        axes.axis("off")
    figure.text(0.015, 1 - 0.42 / sheet.height, "What one patch retrieved", va="center", size=24, color=_INK)
    figure.text(0.015, 1 - 0.98 / sheet.height, caption, va="center", size=14, color=_FAINT)
    _save(figure, path)


def _enlarge(figure: Any, sheet: _Sheet, picture: Frames, query: Query) -> None:
    """Show the query patch and its neighbours large, where the sheet has room for it."""
    place = sheet.enlarged()
    if place is None:
        return
    axes = figure.add_axes(place)
    axes.imshow(picture, interpolation="lanczos")
    _mark(axes, query.row, query.column)
    x, y = query.column * PATCH - 0.5, query.row * PATCH - 0.5
    margin = PATCH * 1.1
    axes.set(xlim=(x - margin, x + PATCH + margin), ylim=(y + PATCH + margin, y - margin))
    axes.axis("off")
    axes.text(1.08, 0.5, "the query patch,\nenlarged", transform=axes.transAxes, va="center", size=13, color=_FAINT)


class _Sheet:
    """Places on a picture of a query at the left and up to two rows of three finds at the right, in inches."""

    _LEFT, _WIDE, _SMALL, _GAP, _HEAD = 0.24, 5.4, 3.2, 0.16, 1.85

    def __init__(self, query_ratio: float, found_ratio: float, count: int) -> None:
        self._query_height = self._WIDE * query_ratio
        self._found_height = self._SMALL * found_ratio
        self._step = self._found_height + 0.85
        rows = -(-count // 3)
        self.height = self._HEAD + max(self._query_height + 0.2, rows * self._step - 0.3)

    def query(self) -> tuple[float, float, float, float]:
        return self._box(self._LEFT, self._HEAD, self._WIDE, self._query_height)

    def enlarged(self) -> tuple[float, float, float, float] | None:
        """Return a square below the query, or None where there is no room."""
        top = self._HEAD + self._query_height + 0.3
        side = min(1.8, self.height - top - 0.25)
        return self._box(self._LEFT, top, side, side) if side >= 1 else None

    def found(self, index: int) -> tuple[float, float, float, float]:
        left = self._LEFT + self._WIDE + 0.3 + index % 3 * (self._SMALL + self._GAP)
        return self._box(left, self._HEAD + index // 3 * self._step, self._SMALL, self._found_height)

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        bottom = self.height - top - height
        return left / WIDTH, bottom / self.height, width / WIDTH, height / self.height


def _ratio(picture: NDArray[np.uint8]) -> float:
    return float(picture.shape[-3] / picture.shape[-2])


def _lit(picture: Frames, area: Bools, attention: Floats, strongest: float) -> Frames:
    """Return the picture dimmed outside the area, and tinted by the attention of each patch."""
    light = np.kron(np.where(area, 1.0, 0.36), np.ones((PATCH, PATCH)))[..., None]
    heat = np.kron(attention / max(strongest, 1e-12), np.ones((PATCH, PATCH)))[..., None] ** 0.5 * 0.65
    tint = np.array([255.0, 31.0, 168.0])
    mixed = picture * light * (1 - heat) + tint * heat
    return np.asarray(np.clip(mixed, 0, 255), np.uint8)


def _outline(axes: Any, area: Bools) -> None:
    """Draw the border of an area of patches."""
    padded = np.pad(area, 1)
    lines = []
    for row, column in np.argwhere(area):
        x, y = column * PATCH, row * PATCH
        around = (
            (padded[row, column + 1], (x, y), (x + PATCH, y)),
            (padded[row + 2, column + 1], (x, y + PATCH), (x + PATCH, y + PATCH)),
            (padded[row + 1, column], (x, y), (x, y + PATCH)),
            (padded[row + 1, column + 2], (x + PATCH, y), (x + PATCH, y + PATCH)),
        )
        lines += [(start, stop) for inside, start, stop in around if not inside]
    collection = require("matplotlib.collections", "matplotlib", "draw").LineCollection
    axes.add_collection(collection(lines, colors=_FOUND, linewidths=2.5, clip_on=False), autolim=False)


def _mark(axes: Any, row: int, column: int) -> None:
    """Draw a box around a patch, with a wider ring, so that a patch of a few pixels is found at a glance."""
    rectangle = _patches().Rectangle
    for margin, colour, width in ((0, "white", 5.0), (0, _QUERY, 2.5), (PATCH, "white", 4.0), (PATCH, _QUERY, 2.0)):
        corner = (column * PATCH - margin, row * PATCH - margin)
        side = PATCH + 2 * margin
        axes.add_patch(rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=width, clip_on=False))


def _thumbnail(axes: Any, picture: Frames, across: tuple[float, float], down: tuple[float, float]) -> None:
    """Show a picture in a box of data coordinates, its aspect kept."""
    width, height = across[1] - across[0], down[1] - down[0]
    ratio = picture.shape[1] / picture.shape[0]
    drawn = (min(width, height * ratio), min(height, width / ratio))
    x, y = across[1] - (width + drawn[0]) / 2, down[1] - (height + drawn[1]) / 2
    axes.imshow(picture, extent=(x, x + drawn[0], y + drawn[1], y), interpolation="lanczos")


def _two_lines(number: int, label: str) -> str:
    """Return the number and name of a shot on at most two lines, as wide as a cell."""
    return textwrap.fill(f"{number}  {label}", width=14, max_lines=2, placeholder=" …")


def _pyplot() -> Any:
    matplotlib = require("matplotlib", "matplotlib", "draw the pictures")
    matplotlib.use("Agg")
    return require("matplotlib.pyplot", "matplotlib", "draw the pictures")


def _patches() -> Any:
    return require("matplotlib.patches", "matplotlib", "draw the pictures")


def _save(figure: Any, path: Path) -> None:
    """Write a PNG of 256 colours, dithered: half of true colour. Marks and background stay exact."""
    image = require("PIL.Image", "Pillow", "write the pictures")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    _pyplot().close(figure)
    with image.open(buffer) as opened:
        picture = opened.convert("RGB")
    exact = (_QUERY, _FOUND, _INK, _FAINT, "#ffffff")
    marks = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in exact])
    photos = picture.quantize(256 - len(marks), dither=image.Dither.NONE)
    indices = np.array(picture.quantize(palette=photos, dither=image.Dither.FLOYDSTEINBERG))
    pixels = np.asarray(picture)
    for index, mark in enumerate(marks, start=256 - len(marks)):
        indices[(pixels == mark).all(axis=-1)] = index
    drawn = image.fromarray(indices)
    drawn.putpalette(photos.getpalette()[: 3 * (256 - len(marks))] + marks.ravel().tolist())
    drawn.save(path, optimize=True)
