"""The pictures: both losses over the steps, and samples of both models beside real frames."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.examples.train_dit.footage import SCENES, SHOTS
from sparsemoc.examples.train_dit.trainer import Record
from sparsemoc.video.errors import require

Records = Sequence[Record]

NAMES = {"dense": "dense", "moc": "Mixture of Contexts"}
_COLOURS = {"dense": "#2f6fb3", "moc": "#d9480f"}
#: Where both curves lie on one another, the wide one shows beneath the narrow one.
_WIDTHS = {"dense": 6.0, "moc": 2.2}
_INK, _FAINT, _BAND = "#1b1b1f", "#6b6b76", "#f3f3f6"
_DPI = 100
#: Share of the running mean that a step keeps.
_KEPT = 0.95


def smoothed(losses: Sequence[float], kept: float = _KEPT) -> NDArray[np.float64]:
    """Return the exponential running geometric mean, weighted so that its beginning is a mean of what there is.

    Geometric, since the time drawn for a step moves its loss by factors: single steps would lift a plain mean.
    """
    found, total, weight = [], 0.0, 0.0
    for loss in np.log(losses):
        total, weight = kept * total + (1 - kept) * loss, kept * weight + (1 - kept)
        found.append(total / weight)
    return np.exp(found)


def stages(records: Records) -> list[tuple[int, int, int]]:
    """Return (first step, step after the last, chunk size) of each stage that the records lie in."""
    found: list[tuple[int, int, int]] = []
    for record in records:
        step, size = record["step"], record["chunk_size"]
        if not found or found[-1][2] != size:
            found.append((step, step + 1, size))
        else:
            found[-1] = (found[-1][0], step + 1, size)
    return found


def kept_pairs(record: Record) -> float:
    """Return the share of query-key pairs that the layers attended to at a step that the monitor read."""
    return float(np.mean([value for name, value in record["monitor"].items() if name.endswith("/density")]))


def draw_losses(runs: Mapping[str, Records], note: str, path: Path) -> None:
    """Write the losses of all runs: each step faint, smoothed, and on held-out clips; below, the pairs kept."""
    figure = _figure(12, 7)
    routed = "moc" in runs
    top = figure.add_axes((0.075, 0.31 if routed else 0.09, 0.71, 0.5 if routed else 0.72))
    for mode, records in runs.items():
        _draw_run(top, mode, records)
    _label_ends(top, runs)
    every = [record["loss"] for records in runs.values() for record in records]
    held = [record["validation"] for records in runs.values() for record in records if "validation" in record]
    top.set(yscale="log", ylim=(min(*np.quantile(every, [0.02]), *held) * 0.9, max(*every, *held) * 1.03))
    _plain_ticks(top)
    top.set_ylabel("flow matching loss", size=12, color=_INK)
    axes = [top]
    if routed:
        axes.append(_draw_pairs(figure, runs["moc"]))
        top.tick_params(labelbottom=False)
        _draw_stages(axes, stages(runs["moc"]))
    axes[-1].set_xlabel("training step", size=12, color=_INK)
    last = max(records[-1]["step"] for records in runs.values())
    for each in axes:
        each.set_xlim(0, last)
        _clean(each)
    figure.text(0.02, 0.955, _title(runs), size=19, color=_INK, va="center")
    figure.text(0.02, 0.905, note, size=11.5, color=_FAINT, va="center")
    _save(figure, path, colours=256)


def _title(runs: Mapping[str, Records]) -> str:
    if len(runs) == 2:
        return "One small video DiT, trained twice: dense, and with Mixture of Contexts"
    return f"A small video DiT, trained with {NAMES[next(iter(runs))]} attention"


def _draw_run(axes: Any, mode: str, records: Records) -> None:
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    held = [(r["step"], r["validation"]) for r in records if "validation" in r]
    colour = _COLOURS[mode]
    alpha = 0.5 if mode == "dense" else 1.0
    axes.plot(steps, losses, color=colour, lw=0.7, alpha=0.3)
    axes.plot(steps, smoothed(losses), color=colour, lw=0.6 * _WIDTHS[mode], alpha=alpha, ls="--")
    axes.plot(*zip(*held, strict=True), color=colour, lw=_WIDTHS[mode], alpha=alpha, marker="o", ms=5)


def _label_ends(axes: Any, runs: Mapping[str, Records]) -> None:
    """Name each curve beside its last held-out loss; names keep clear of each other."""
    ends = sorted(((records[-1]["validation"], mode) for mode, records in runs.items()), reverse=True)
    for place, (value, mode) in enumerate(ends):
        axes.annotate(
            f"{NAMES[mode]}\nheld out {value:.3f}", (1, value), xycoords=("axes fraction", "data"),
            xytext=(10, (len(ends) - 1) * 19 - 38 * place), textcoords="offset points", va="center", size=12,
            color=_COLOURS[mode], weight="bold",
        )  # fmt: skip
    lines = require("matplotlib.lines", "matplotlib", "draw")
    keys = [
        lines.Line2D([], [], color=_INK, lw=2.4, marker="o", ms=4.5, label="held-out clips, fixed noise"),
        lines.Line2D([], [], color=_INK, lw=1.6, ls="--", label="training, running geometric mean"),
        lines.Line2D([], [], color=_INK, lw=0.7, alpha=0.4, label="training, each step"),
    ]
    axes.legend(handles=keys, loc="upper right", frameon=False, fontsize=11, labelcolor=_INK)


def _draw_pairs(figure: Any, records: Records) -> Any:
    axes = figure.add_axes((0.075, 0.09, 0.71, 0.17))
    read = [(r["step"], 100 * kept_pairs(r)) for r in records if "monitor" in r]
    axes.axhline(100, color=_COLOURS["dense"], lw=2.4)
    axes.plot(*zip(*read, strict=True), color=_COLOURS["moc"], lw=2.4, marker="o", ms=4.5)
    axes.set(ylim=(0, 112), yticks=(0, 50, 100), yticklabels=("0 %", "50 %", "100 %"))
    axes.set_ylabel("pairs kept", size=12, color=_INK)
    axes.annotate(
        f"{read[-1][1]:.0f} %", (1, read[-1][1]), xycoords=("axes fraction", "data"), xytext=(10, 0),
        textcoords="offset points", va="center", size=12, color=_COLOURS["moc"], weight="bold",
    )  # fmt: skip
    return axes


def _draw_stages(axes: Sequence[Any], found: Sequence[tuple[int, int, int]]) -> None:
    for number, (first, stop, size) in enumerate(found):
        for each in axes:
            if number % 2 == 0:
                each.axvspan(first, stop, color=_BAND, lw=0, zorder=0)
        axes[0].text(
            (first + stop) / 2, 1.02, f"chunks of {size} tokens", transform=axes[0].get_xaxis_transform(),
            ha="center", va="bottom", size=12, color=_FAINT,
        )  # fmt: skip


def _plain_ticks(axes: Any) -> None:
    """Few numbers, written out: powers of ten say nothing within one decade."""
    ticker = require("matplotlib.ticker", "matplotlib", "draw")
    axes.yaxis.set_major_locator(ticker.FixedLocator([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0]))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8c8d0")
    axes.tick_params(colors=_FAINT, labelsize=11)
    axes.grid(axis="y", color="#e4e4ea", lw=0.8)
    axes.set_axisbelow(True)


def draw_samples(rows: Sequence[tuple[str, NDArray[np.uint8]]], scenes: Sequence[int], note: str, path: Path) -> None:
    """Write frames of clips below each other, two of each shot.

    Args:
        rows: name and frames (frames, height, width, 3) of each clip.
        scenes: scene number of each shot.
        note: below the title.
        path: of the PNG.
    """
    frames, height, width, _ = rows[0][1].shape
    length = frames // SHOTS
    shown = [shot * length + place for shot in range(SHOTS) for place in (0, length - 1)]
    left, gap, between, side = 1.75, 0.05, 0.22, 1.55
    tall = side * height / width
    wide = left + len(shown) * (side + gap) + (SHOTS - 1) * between + 0.15
    high = 1.6 + len(rows) * (tall + 0.08)
    figure = _figure(wide, high)
    for row, (name, pictures) in enumerate(rows):
        bottom = high - 1.5 - (row + 1) * (tall + 0.08)
        figure.text(
            (left - 0.15) / wide, (bottom + tall / 2) / high, name, ha="right", va="center", size=13, color=_INK
        )
        for column, frame in enumerate(shown):
            x = left + column * (side + gap) + column // 2 * between
            axes = figure.add_axes((x / wide, bottom / high, side / wide, tall / high))
            axes.imshow(pictures[frame], interpolation="lanczos")
            axes.axis("off")
            if row == 0 and column % 2 == 0:
                shot = column // 2
                figure.text(
                    x / wide, (high - 1.38) / high, f"shot {shot}  ·  {SCENES[scenes[shot]].label}",
                    size=13, color=_INK,
                )  # fmt: skip
    figure.text(0.15 / wide, 1 - 0.36 / high, "Samples after training, from noise", size=19, color=_INK, va="center")
    figure.text(0.15 / wide, 1 - 0.78 / high, note, size=11.5, color=_FAINT, va="center")
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    figures = require("matplotlib.figure", "matplotlib", "draw the pictures")
    return figures.Figure(figsize=(width, height), dpi=_DPI, facecolor="white")


def _save(figure: Any, path: Path, colours: int | None = None) -> None:
    """Write a PNG, of few colours where lines are drawn: a third of true colour."""
    image = require("PIL.Image", "Pillow", "write the pictures")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with image.open(buffer) as opened:
        picture = opened.convert("RGB")
    (picture if colours is None else picture.quantize(colours)).save(path, optimize=True)
