"""The numbers of a demo run: as a table for summary.json, and printed for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparsemoc._version import __version__
from sparsemoc.cli.features import Tokens
from sparsemoc.cli.recall import dense_pairs
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.video.shots import Shot


def summarise(
    shots: Sequence[Shot],
    tokens: Tokens,
    spec: RoutingSpec,
    layout: Layout,
    seconds: Mapping[str, float],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that was measured, ready for JSON."""
    _, count, heads, head_dim = tokens.q.shape
    pairs = layout.pairs()
    lengths = layout.plan.samples[0].chunk_lengths
    full = dense_pairs(count, spec.causal == "token")
    report = layout.report()
    return {
        "version": __version__,
        "shots": [_shot(shot) for shot in shots],
        "tokens": count,
        "heads": heads,
        "head_dim": head_dim,
        "chunks": {"count": len(lengths), "shortest": int(lengths.min()), "longest": int(lengths.max())},
        "pairs": pairs,
        "density": layout.density(),
        "flops": {
            "attention": layout.flops(head_dim),
            "routing": 2 * count * heads * len(lengths) * head_dim,
            "dense": 4 * full * heads * head_dim,
        },
        "seconds": dict(seconds),
        "dense": measured["dense"],
        "recall": measured["recall"],
        "oracle": measured["oracle"],
        "dead_chunks": [len(dead) for dead in report.dead_chunks],
        "shot_matrix": report.shot_matrix.mean(axis=0).round(4).tolist(),
    }


def _shot(shot: Shot) -> dict[str, Any]:
    last = shot.start + (len(shot.frames) - 1) * shot.every
    name = Path(shot.source).name
    return {"label": shot.label, "file": name, "first_frame": shot.start, "last_frame": last, "grid": list(shot.grid)}


def print_summary(console: Console, summary: Mapping[str, Any], folder: Path) -> None:
    """Print the shots, the numbers and where the pictures are."""
    console.print(_shot_table(summary["shots"]))
    console.print(_number_table(summary))
    console.print(
        "Note: real video and real routing, but made features: q and k of patches that look alike are alike. "
        "How much a trained model's routes recall depends on the model.",
        style="dim",
    )
    console.print(
        f"Written to {folder}{'/' if str(folder) != '/' else ''}: {', '.join(summary['files'])}", soft_wrap=True
    )


def _shot_table(shots: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Shots", title_justify="left")
    for name, justify in (
        ("shot", "right"),
        ("scene", "left"),
        ("file", "left"),
        ("frames", "right"),
        ("latent grid", "right"),
    ):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for number, shot in enumerate(shots):
        grid = " x ".join(str(n) for n in shot["grid"])
        table.add_row(str(number), shot["label"], shot["file"], f"{shot['first_frame']} to {shot['last_frame']}", grid)
    return table


def _number_table(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Routing", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _numbers(summary):
        table.add_row(name, value)
    return table


def _numbers(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    chunks, flops, seconds = summary["chunks"], summary["flops"], summary["seconds"]
    recall, oracle = summary["recall"], summary["oracle"]
    sparse = seconds["route"] + seconds["attend"]
    work = flops["attention"] + flops["routing"]
    return [
        ("tokens", f"{summary['tokens']:,} x {summary['heads']} heads x {summary['head_dim']} channels"),
        ("chunks", chunk_sizes(chunks["count"], chunks["shortest"], chunks["longest"])),
        ("density", f"{summary['density']:.2%} of all query-key pairs"),
        (
            "FLOPs",
            f"{amount(flops['attention'])} attention + {amount(flops['routing'])} routing = "
            f"{work / flops['dense']:.1%} of dense ({amount(flops['dense'])})",
        ),
        ("dense mass recalled", _kept(recall)),
        ("  by anchors alone", f"{recall['anchors']:.1%}"),
        ("  by random routes", f"{recall['random']:.1%} on average"),
        ("  by the best routes", f"{recall['best']:.1%}: the most that as many chunks can hold"),
        (
            "error against oracle",
            f"max {oracle['largest']:.1e}, rms {oracle['rms']:.1e} (rms of out {oracle['scale']:.2f}), "
            f"{oracle['same_routes']:.1%} same routes, {oracle['queries']} sampled queries",
        ),
        (
            "time",
            f"{sparse:.2f} s = route {seconds['route']:.2f} s + attend {seconds['attend']:.2f} s "
            f"(after {seconds['prepare']:.1f} s of preparation)",
        ),
        ("time of dense", _dense(summary["dense"], "the same backend", sparse)),
        *((("", _dense(torch, "PyTorch", sparse)),) if (torch := summary["dense"].get("torch")) else ()),
    ]


def _kept(recall: Mapping[str, Any]) -> str:
    if not recall["queries"]:
        return "all: no query of this spec has routes"
    return f"{recall['kept']:.1%}, of {recall['queries']} sampled queries in all heads"


def _dense(time: Mapping[str, Any], by: str, sparse: float) -> str:
    whole = time["measured"] > 0.999
    how = "" if whole else f", extrapolated from {time['measured']:.0%} of its pairs"
    return f"{time['seconds']:.2f} s by {by}{how}: {time['seconds'] / sparse:.2f} x as long"


def chunk_sizes(count: int, shortest: int, longest: int) -> str:
    """Return how many chunks there are and how long: 37 chunks, 226 to 1,254 tokens each."""
    lengths = f"{shortest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
    return f"{counted(count, 'chunk')}, {lengths} token{'s' if longest > 1 else ''}{' each' if count > 1 else ''}"


def counted(count: int, thing: str) -> str:
    """Return a number of things: 1 head, 24 heads."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def amount(number: float, unit: str = "") -> str:
    """Return a number with a metric prefix and its unit: 12.3 G, 400 B, 1.2 MB."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:  # what rounds to a thousand takes the next prefix
            return f"{number:.3g} {prefix}{unit}".rstrip()
        number /= 1000
    return f"{number:.3g} P{unit}"
