"""What the strategies draw: the cases that a backend could get wrong do occur, and every problem is bounded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from sparsemoc.spec.anchors import WORDS, First, Window
from sparsemoc.spec.routing import Block
from sparsemoc.testing import conformance, oracle, problems
from sparsemoc.testing.problems import DATA, STRIDES, Problem
from sparsemoc.testing.strategies import DTYPES, MAX_PAIRS
from sparsemoc.testing.strategies import problems as draw_problems

_QUIET = settings(
    deadline=None,
    max_examples=600,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


def _words_of_spec(problem: Problem) -> set[object]:
    spec = problem.spec
    found: set[object] = {("causal", spec.causal), ("scope", spec.dense_scope), ("tail", spec.chunks.tail)}
    found |= {("dense", kind) for kind in spec.dense_queries} or {"no dense"}
    found |= {("anchor", a) if isinstance(a, str) else (type(a), a.unit, getattr(a, "of", "")) for a in spec.anchors}
    found.add("bounds" if spec.chunks.bounds else ("align", spec.chunks.align))
    found.add("one chunk per segment" if spec.chunks.size is None else "sized")
    found.add("block" if isinstance(spec.unit, Block) else "token")
    found.add("per head" if isinstance(spec.top_k, tuple) else "one top_k")
    if spec.dropout is not None:
        found.add("training" if problem.training else "dropout without training")
    if not spec.anchors:
        found.add("no anchors")
    return found


def _words_of_arrays(problem: Problem) -> set[object]:
    found: set[object] = {("dtype", problem.dtype), ("data", problem.data), ("strides", problem.strides)}
    found |= {("axes", problem.axes), "packed" if problem.packed else "batched"}
    found.add(("group", problem.heads // problem.kv_heads))
    found.add("own v_head_dim" if problem.v_head_dim != problem.head_dim else "same head_dim")
    found.add("scaled" if problem.scale is not None else "default scale")
    if problem.key_lengths is not None:
        found.add("padding")
    if problem.q_tokens is not None:
        found.add("last queries" if problem.q_start is None else "query range")
    return found


def _words_of_rows(problem: Problem) -> set[object]:
    found: set[object] = set()
    for sample in problem.samples():
        _, lse, selected, _ = oracle.solve(sample)
        found |= {"empty row"} if np.isneginf(lse[:, sample.valid_queries]).any() else set()
        found |= {"routes"} if (selected >= 0).any() else set()
        counts = sample.candidates.sum(axis=1)
        top_k = min(sample.top_k)
        found |= {"more candidates than routes"} if (counts > top_k).any() and top_k else set()
        found |= {"fewer candidates than routes"} if ((counts < top_k) & (counts > 0)).any() else set()
        found |= {"a chunk of one token"} if 1 in np.diff(oracle.chunk_bounds(sample.spec, sample.stream)) else set()
        found |= {"a shot in two parts"} if _scattered(sample.stream) else set()
    return found


def _scattered(stream: problems.Stream) -> bool:
    shots = [segment.shot for segment in stream.segments]
    return any(shot is not None and shot in shots[i + 2 :] and shots[i + 1] != shot for i, shot in enumerate(shots))


@pytest.fixture(scope="module")
def seen() -> Counter[object]:
    counts: Counter[object] = Counter()

    @_QUIET
    @given(draw_problems())
    def draw(problem: Problem) -> None:
        pairs = problem.queries * problem.tokens * problem.heads * problem.batch
        assert pairs <= MAX_PAIRS
        counts.update(_words_of_spec(problem) | _words_of_arrays(problem) | _words_of_rows(problem))

    draw()
    return counts


EXPECTED = [
    *(("anchor", word) for word in WORDS),
    *((First, unit, of) for unit in ("token", "frame") for of in ("stream", "shot")),
    *((Window, unit, "") for unit in ("token", "frame", "chunk")),
    *(("dtype", dtype) for dtype in DTYPES),
    *(("data", data) for data in DATA),
    *(("strides", strides) for strides in STRIDES),
    *(("causal", word) for word in ("none", "chunk", "token")),
    *(("scope", word) for word in ("all", "past")),
    *(("tail", word) for word in ("balanced", "short")),
    *(("axes", word) for word in ("bshd", "bhsd")),
    *(("group", size) for size in (1, 2, 3)),
    ("align", "frame"), ("dense", "text"), ("dense", "audio"), "no dense", "bounds", "one chunk per segment", "block",
    "token", "per head", "training", "dropout without training", "no anchors", "packed", "batched", "own v_head_dim",
    "scaled", "padding", "last queries", "query range", "empty row", "routes", "more candidates than routes",
    "fewer candidates than routes", "a chunk of one token", "a shot in two parts",
]  # fmt: skip


@pytest.mark.parametrize("case", EXPECTED, ids=str)
def test_the_case_occurs(case: object, seen: Counter[object]) -> None:
    assert seen[case] >= 3


@_QUIET
@given(draw_problems())
def test_a_problem_is_rebuilt_by_its_repro_line(problem: Problem) -> None:
    names: dict[str, object] = dict(vars(problems))
    exec(problem.repro(), names)
    assert names["problem"] == problem


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
def test_presentation_changes_no_value(axes: str, strides: str) -> None:
    stream = problems.Stream((problems.Segment("video", 5),))
    problem = Problem(
        problems.RoutingSpec(),
        (stream,),
        batch=2,
        heads=4,
        kv_heads=2,
        head_dim=3,
        v_head_dim=2,
        axes=axes,
        strides=strides,
    )
    for x in (problem.arrays.q, problem.arrays.k, problem.arrays.v):
        shown = problem.present(x)
        assert np.array_equal(problem.restore(shown), x)
        if strides == "broadcast":
            assert 0 in shown.strides
        elif strides != "plain":
            assert not shown.flags.c_contiguous


def test_generic_data_is_decidable() -> None:
    conformance.check_decidable()
