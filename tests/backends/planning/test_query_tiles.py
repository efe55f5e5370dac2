"""The tiles of the anchors: every anchored pair once, in tiles that depend on nothing but one sample."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

from sparsemoc.backends.planning.geometry import Geometry, geometry
from sparsemoc.backends.planning.query_tiles import BANDED, FULL, QueryTiles, Sizes, query_tiles
from sparsemoc.testing.oracle import anchor_mask
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.sample import Sample
from sparsemoc.testing.strategies import problems
from tests.backends.attention_cases import plan_of

SIZES = st.builds(
    Sizes, rows=st.sampled_from((2, 4, 16)), keys=st.sampled_from((2, 4)), split=st.sampled_from((4, 6, 1000)),
    union=st.booleans(),
)  # fmt: skip


def pairs(tables: Geometry, tiles: QueryTiles) -> np.ndarray[Any, Any]:
    """Return how often the items attend each pair."""
    found = np.zeros((tables.rows, tables.plan.k_tokens), int)
    for row, rows, entry, end, _, _ in tiles.items.tolist():
        for k_lo, k_hi, q_lo, q_hi, _, flags in tiles.entries[entry:end].tolist():
            query, key = np.arange(row, row + rows)[:, None], np.arange(k_lo, k_hi)[None, :]
            position = query + tables.q_start
            seen = (query >= q_lo) & (query < q_hi) & (key >= 0)
            if flags & BANDED:
                seen = seen & (abs(position - key) <= tables.reach)
            if tables.token_causal:
                seen = seen & (key <= position)
            assert not flags & FULL or seen.all()
            found[row : row + rows, k_lo:k_hi] += seen
    return found


def wanted(sample: Sample) -> np.ndarray[Any, Any]:
    mask = anchor_mask(sample.spec, sample.stream, sample.q_start, sample.q_tokens)
    query, key = np.arange(sample.q_tokens)[:, None] + sample.q_start, np.arange(sample.stream.tokens)
    return mask & (key <= query) if sample.spec.causal == "token" else mask


@hypothesis.given(problem=problems(dropout=False, padding=False), sizes=SIZES, padded=st.booleans())
def test_items_hold_every_anchored_pair_once(problem: Problem, sizes: Sizes, padded: bool) -> None:
    tables = geometry(plan_of(problem), padded)
    found, row, key = pairs(tables, query_tiles(tables, sizes)), 0, 0
    for sample in problem.samples()[: len(problem.streams)]:
        part = found[row : row + sample.q_tokens, key : key + sample.stream.tokens]
        routed = ~sample.dense
        assert (part[routed] == wanted(sample)[routed]).all()
        assert part.max(initial=0) <= 1
        row, key = row + sample.q_tokens, key + sample.stream.tokens
    assert found.max(initial=0) <= 1


@hypothesis.given(problem=problems(dropout=False), sizes=SIZES)
def test_every_row_has_a_place_in_each_of_its_parts(problem: Problem, sizes: Sizes) -> None:
    tables = geometry(plan_of(problem), False)
    tiles = query_tiles(tables, sizes)
    bounds = tiles.tiles[:, 0].tolist()
    assert bounds[0] == 0
    assert [row + rows for row, rows, _, _ in tiles.tiles.tolist()] == [*bounds[1:], tables.rows]
    places = [
        np.arange(row, row + rows) + shift
        for row, rows, first, end in tiles.tiles.tolist()
        for shift in tiles.parts[first:end].tolist()
    ]
    assert sorted(np.concatenate(places).tolist() if places else []) == list(range(tiles.places))
    assert (tiles.items[:, 1] <= sizes.rows).all()
