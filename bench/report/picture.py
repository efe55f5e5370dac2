"""A picture: what it shows, how it is read, and a sheet of one look: title, room for axes, small print at the foot."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.report import provenance
from bench.report.looks import FAINT, INK, Looks
from bench.report.records import Record
from bench.report.results import Results

#: In inches: 8 of 150 dots. Small print is still legible where a page shows the picture 800 dots wide.
WIDTH, DPI = 8.0, 150
_TITLE, _LINE, _SMALL, _EDGE = 0.46, 0.19, 0.135, 0.1
#: Letters to a line of the subtitle and of the small print.
_WIDE, _WIDEST = 106, 128

QUICK = "quick: sizes too small to mean anything"

#: The marks of a legend by their text; empty for none.
Legend = Mapping[str, Any]
_IN_ROW = 3


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that can be drawn.

    Attributes:
        name: of the file, without ".png".
        title: what it shows; subtitle: of what sizes.
        how: one sentence: how to read it.
        records: those that are drawn, for the small print.
        height: inches of the axes.
        paint: draws on a figure with the room of the axes, and returns the legend that stands above them.
        notes: what the small print says besides.
    """

    name: str
    title: str
    subtitle: str
    how: str
    records: Sequence[Record]
    height: float
    paint: Callable[[Any], Legend]
    notes: tuple[str, ...] = ()


class Idea(NamedTuple):
    """A kind of picture: its title, the command that measures it, whether README shows it, and those of results."""

    title: str
    measure: str
    in_readme: bool
    pictures: Callable[[Results, Looks], Iterator[Picture]]


def png(picture: Picture, quick: bool) -> bytes:
    """Return a picture as a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    head = textwrap.wrap(picture.subtitle, _WIDE)
    foot = provenance.foot(picture.records, picture.notes, _WIDEST)
    with mpl.rc_context(_RC):
        room = ConstrainedLayoutEngine()
        figure = Figure(dpi=DPI, facecolor="white", layout=room)
        legend = picture.paint(figure)
        above = _TITLE + _LINE * (len(head) - (-len(legend) // _IN_ROW)) + _EDGE * (1.2 if legend else 0.5)
        below = _SMALL * len(foot) + 2 * _EDGE
        height = above + picture.height + below
        figure.set_size_inches(WIDTH, height)
        room.set(rect=(0.01, below / height, 0.98, picture.height / height))
        left = 0.14 / WIDTH
        if legend:
            corner = (left - 0.005, 1 - (_TITLE + _LINE * len(head) + 0.7 * _EDGE) / height)
            made = figure.legend(
                legend.values(), legend.keys(), loc="upper left", bbox_to_anchor=corner, ncols=_IN_ROW,
                borderpad=0, borderaxespad=0, labelspacing=0.25, columnspacing=1.6,
            )  # fmt: skip
            made.set_in_layout(False)
        figure.text(left, 1 - 0.3 / height, picture.title, size=14, weight="bold", color=INK, va="center")
        figure.text(
            left, 1 - (_TITLE + 0.02) / height, "\n".join(head), size=9.5, color=FAINT, va="top", linespacing=1.25
        )
        figure.text(left, _EDGE / height, "\n".join(foot), size=7, color=FAINT, va="bottom", linespacing=1.25)
        if quick:
            figure.text(
                1 - left, _EDGE / height, QUICK, size=9, weight="bold", color="#B00020", va="bottom", ha="right"
            )
        buffer = io.BytesIO()
        # Without the version of matplotlib in the file the same records give the same bytes.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


_RC = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.edgecolor": "#9a9aa5",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6ea",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
