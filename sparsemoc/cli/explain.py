"""`sparsemoc explain`: what a spec costs, before any data is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from sparsemoc.cli import speed
from sparsemoc.cli.errors import check_heads
from sparsemoc.cli.summary import amount, chunk_sizes, counted
from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.errors import SpecError
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.spec.routing import Block, RoutingSpec
from sparsemoc.spec.sample_plan import SamplePlan
from sparsemoc.spec.serial import load_spec

#: Bytes of an element of q, k, v and out in the memory estimate: float16 or bfloat16.
ELEMENT = 2
#: Stretches of queries that share their candidates are walked up to this many; beyond it, evenly spread ones.
MOST_GROUPS = 512


@dataclass(frozen=True)
class Candidates:
    """How many chunks a routing unit may choose from, and the pairs that the routes are expected to add per head."""

    fewest: int
    mean: float
    most: int
    routed_pairs: float


@dataclass(frozen=True)
class Expected:
    """What a spec is expected to keep.

    Attributes:
        candidates: of its routing queries, in one head.
        anchored, pairs, full: anchored pairs, those and the routed ones, and all pairs, of all heads.
    """

    candidates: Candidates
    anchored: int
    pairs: float
    full: int

    @property
    def density(self) -> float:
        """The share of all pairs."""
        return self.pairs / self.full


@click.command("explain", short_help="Print what a routing spec costs.")
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--tokens", type=click.IntRange(1), metavar="N", help="Length of the stream, for a spec without one.")
@click.option("--heads", type=click.IntRange(1), default=1, show_default=True, metavar="H", help="Query heads.")
@click.option(
    "--head-dim", type=click.IntRange(1), default=128, show_default=True, metavar="D", help="Channels of a head."
)
@click.option("--backend", metavar="NAME", help="Backend of the speed; by default all that can run and were measured.")
@click.option("--dtype", metavar="NAME", help="Dtype of the speed.  [default: float32, on a GPU bfloat16]")
def command(
    spec_file: Path, tokens: int | None, heads: int, head_dim: int, backend: str | None, dtype: str | None
) -> None:
    """Print chunks, candidates, expected density, FLOPs, memory and speed of a routing spec (.toml or .json)."""
    spec = load_spec(spec_file)
    if spec.stream is None and tokens is None:
        raise SpecError("explain: --tokens must be given, for the spec has no stream. Hint: --tokens 16384.")
    check_heads("explain", spec, heads)
    made = plan(spec, tokens=tokens)
    found = _expected(made.samples[0], spec.top_k_of(heads))
    asked = speed.Asked(made, heads, head_dim, found.density, backend, dtype)
    tables = _what(spec, made), _costs(made, found, heads, head_dim), _speed(asked)
    console = Console()
    for table in tables:  # all made before one is printed
        console.print(table)
    console.print(
        "Expected: every route adds a chunk of mean length that holds as few anchored keys as the others. "
        "Memory: two bytes to an element, as many key heads as query heads, no gradients. "
        "Speed: one forward with its routing.",
        style="dim",
    )


def _what(spec: RoutingSpec, made: Plan) -> Table:
    table = _table("Spec")
    stream = made.streams[0]
    kinds = [f"{segment.kind} {segment.grid or segment.tokens}" for segment in stream.segments]
    several = f" … ({len(kinds)} segments)" if len(kinds) > 6 else ""
    table.add_row("stream", f"{stream.tokens:,} tokens: {', '.join(kinds[:6])}{several}")
    table.add_row("anchors", ", ".join(_anchor(anchor) for anchor in spec.anchors) or "none")
    table.add_row("top_k", str(spec.top_k))
    table.add_row("causal", spec.causal)
    table.add_row("dense queries", f"{', '.join(spec.dense_queries) or 'none'} (scope {spec.dense_scope})")
    table.add_row("query unit", f"blocks of {spec.unit.n}" if isinstance(spec.unit, Block) else "token")
    if spec.dropout is not None:
        table.add_row("dropout", f"off {spec.dropout.off:g}, into {spec.dropout.into:g} (training only)")
    return table


def _anchor(anchor: str | First | Window) -> str:
    if isinstance(anchor, First):
        return f"first {anchor.n} {anchor.unit}s of {'every shot' if anchor.of == 'shot' else 'the stream'}"
    if isinstance(anchor, Window):
        return f"own {anchor.unit} and {anchor.n} on either side"
    return anchor


def _expected(sample: SamplePlan, top_k: tuple[int, ...]) -> Expected:
    heads, found = len(top_k), candidates(sample, top_k)
    anchored = heads * sample.anchor_rectangles.pairs(sample.reach, sample.token_causal)
    return Expected(found, anchored, anchored + found.routed_pairs, heads * sample.q_tokens * sample.k_tokens)


def _costs(made: Plan, expected: Expected, heads: int, head_dim: int) -> Table:
    sample, found = made.samples[0], expected.candidates
    lengths, full = sample.chunk_lengths, expected.full
    table = _table("Costs")
    table.add_row("counted for", f"{counted(heads, 'head')} x {counted(head_dim, 'channel')}, one sample")
    spread = chunk_sizes(len(lengths), int(lengths.min()), int(lengths.max()))
    table.add_row("chunks", f"{spread}, median {float(np.median(lengths)):,.10g}")
    table.add_row("candidates of a query", f"{found.fewest:,} to {found.most:,} chunks, mean {found.mean:,.1f}")
    table.add_row("anchors", f"{expected.anchored / full:.2%} of all pairs")
    table.add_row("expected density", f"{expected.density:.2%} of all pairs")
    flops, dense = 4 * expected.pairs * head_dim, 4 * full * head_dim
    routing = 2 * heads * head_dim * len(sample.unit_lo) * found.mean
    table.add_row(
        "expected FLOPs",
        f"{amount(flops)} attention + {amount(routing)} routing, dense {amount(dense)}: "
        f"{(flops + routing) / dense:.1%}",
    )
    inputs = ELEMENT * heads * head_dim * (2 * sample.q_tokens + 2 * sample.k_tokens)
    routes = 4 * heads * sample.q_tokens * made.slots
    pooled = 4 * heads * head_dim * sample.chunks
    table.add_row("memory: q, k, v, out", amount(inputs, "B"))
    table.add_row("memory: routing", f"{amount(routes, 'B')} selection + {amount(pooled, 'B')} centroids")
    table.add_row("memory: not needed", f"{amount(4 * full, 'B')} of dense logits in float32")
    return table


def _speed(asked: speed.Asked) -> Table:
    table = _table("Speed")
    for row in speed.rows(asked):
        table.add_row(*row)
    return table


def candidates(sample: SamplePlan, top_k: tuple[int, ...]) -> Candidates:
    """Return what the routing queries of a sample may choose from, and the pairs their routes are expected to add."""
    groups = len(sample.group_lo)
    chosen = np.unique(np.linspace(0, groups - 1, min(groups, MOST_GROUPS)).astype(int)) if groups else ()
    counts, queries, added = [], [], []
    for group in chosen:
        new = _new_keys(sample, int(group))
        units = slice(sample.group_lo[group], sample.group_hi[group])
        counts.append(len(new))
        queries.append(int((sample.unit_hi[units] - sample.unit_lo[units]).sum()))
        added.append(queries[-1] * float(new.mean()) * sum(min(k, len(new)) for k in top_k))
    routing = int((sample.unit_hi - sample.unit_lo).sum())
    if not counts:
        return Candidates(0, 0.0, 0, 0.0)
    inside = np.concatenate([np.arange(lo, hi) for lo, hi in zip(sample.group_lo, sample.group_hi, strict=True)])
    grouped = int((sample.unit_hi[inside] - sample.unit_lo[inside]).sum())
    fewest = min(counts) if grouped == routing else 0
    mean = float(np.average(counts, weights=queries)) * grouped / routing
    return Candidates(fewest, mean, max(counts), sum(added) * grouped / sum(queries))


def _new_keys(sample: SamplePlan, group: int) -> NDArray[np.int64]:
    """Return for each candidate chunk of a group how many of its keys are no anchor of the group's middle query."""
    middle = (int(sample.group_lo[group]) + int(sample.group_hi[group])) // 2
    position = int(sample.unit_lo[middle])
    chunks = sample.candidates(position)
    anchored = np.searchsorted(sample.chunk_bounds, sample.anchors(position), side="right") - 1
    held = np.bincount(anchored, minlength=sample.chunks)
    return np.asarray(sample.chunk_lengths[chunks] - held[chunks])


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table
