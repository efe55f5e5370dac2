"""The grid as text: speed-ups by length and density, and where dense attention is faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from bench.crossover.measure import Measured
from sparsemoc.tuning.crossover import Crossover


def of(lengths: Sequence[Measured]) -> Table:
    """Return the table of speed-ups: a row for each length, a column for each problem of it."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Times as fast as dense attention", title_justify="left")
    # The same problems at every length, the last part of their names: crossover/<tokens>/<which>.
    kinds = {name.rpartition("/")[2]: None for one in lengths for name in one.points}
    made.add_column("tokens", justify="right")
    for kind in kinds:
        kept = next(point.density for one in reversed(lengths) for name, point in one.points.items() if _is(name, kind))
        made.add_column(f"{100 * kept:.3g} %{'' if kind.isdigit() else f' {kind}'}", justify="right")
    made.add_column("dense", justify="right")
    for one in lengths:
        cells = [next((f"{p.speedup:.3g}" for name, p in one.points.items() if _is(name, kind)), "-") for kind in kinds]
        dense = "-" if one.dense is None else f"{one.seconds[one.dense] * 1e3:.3g} ms, {one.dense}"
        made.add_row(f"{one.tokens:,}", *cells, dense)
    return made


def _is(name: str, kind: str) -> bool:
    return name.rpartition("/")[2] == kind


def sentences(found: Crossover) -> Iterator[str]:
    """Yield for each measured density below which length dense attention is faster."""
    for density in sorted({point.density for point in found.points if point.tokens == found.lengths[-1]}):
        length = found.length(density)
        at = f"at {100 * density:.3g} % density"
        if length is None:
            yield f"dense attention is faster {at}, up to the longest measured, {found.lengths[-1]:,} tokens"
        elif length == found.lengths[0]:
            yield f"MoC is faster {at}, from the shortest measured, {length:,} tokens"
        else:
            yield f"dense attention is faster below {length:,} tokens {at}"
    yield f"read from lines through the points, which miss a point by {100 * found.misfit:.2g} % at most"
