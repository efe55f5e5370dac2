"""Attention calls that every GPU backend's kernels are held to, for selections that the reference backend makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsemoc.backends import protocol
from sparsemoc.backends.reference import BACKEND as REFERENCE
from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.spec.routing import Block, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.testing import checks
from sparsemoc.testing.problems import Problem

DTYPES = ("float32", "float16", "bfloat16")
#: Changes to `problem_of` that differ in what a row sees.
SPECS: tuple[dict[str, Any], ...] = (
    {"anchors": ("shot",), "q_start": 4, "q_tokens": 30},
    {"anchors": (Window(6),)},
    {"anchors": (Window(6),), "causal": "token"},
    {"anchors": (First(4), "frame"), "top_k": 9},
    {"anchors": (), "top_k": 0},
    {"anchors": (), "causal": "chunk", "dense_queries": ()},
    {"anchors": (Window(4), First(3)), "unit": Block(4)},
    {"anchors": ("text", "chunk"), "unit": Block(4), "causal": "token"},
    {"scale": 0.0},
    {"scale": -0.7},
)
#: Fields of the spec that `problem_of` takes beside those of the problem.
SPEC_FIELDS = ("chunks", "causal", "unit", "top_k", "dense_queries")
#: Runs the forward of a problem: (problem, selected) -> (out, lse), NumPy arrays without the batch axis where packed.
Run = Callable[..., tuple[Any, Any]]


def plan_of(problem: Problem) -> Plan:
    """Return the plan of a problem."""
    if problem.packed:
        return plan(problem.spec, problem.streams)
    return plan(problem.spec, problem.streams[0], q_start=problem.q_start, q_tokens=problem.queries)


def call_of(problem: Problem, framework: str, options: protocol.Options | None = None) -> protocol.Problem:
    """Return a problem as a backend is asked about it."""
    return protocol.Problem(
        plan=plan_of(problem),
        framework=framework,
        device="cpu",
        dtype=problem.dtype,
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        head_dim=problem.head_dim,
        v_head_dim=problem.v_head_dim,
        options=options or protocol.Options(),
    )


def routes(problem: Problem) -> np.ndarray[Any, Any]:
    """Return the selection that the reference backend makes."""
    call, lengths = call_of(problem, "numpy"), problem.key_length_array()
    q, k = (x[None] if problem.packed else x for x in (problem.arrays.q, problem.arrays.k))
    with np.errstate(all="ignore"):
        centroids = REFERENCE.pool(call, k, lengths)
        return REFERENCE.route(call, q, centroids, lengths, None)


def movie(frames: int = 3, tokens: int = 7) -> Stream:
    """Return two shots with captions, after a prompt."""
    shots = [Segment("video", shot=shot, grid=(frames, 1, tokens)) for shot in (0, 1)]
    return Stream((Segment("text", 5), Segment("text", 3, shot=0), shots[0], Segment("text", 2, shot=1), shots[1]))


def problem_of(anchors: tuple[Any, ...] = ("text", "chunk"), **changes: Any) -> Problem:
    """Return a small problem over `movie()`; changes are of the spec or of the problem."""
    fields: dict[str, Any] = {"chunks": Chunks(size=9), "top_k": 2, "anchors": anchors}
    fields |= {name: changes.pop(name) for name in SPEC_FIELDS if name in changes}
    spec = RoutingSpec(**fields)
    shape: dict[str, Any] = {"streams": (movie(),), "heads": 2, "kv_heads": 1, "head_dim": 8, "v_head_dim": 12}
    return Problem(spec=spec, **shape | changes)


def check(run: Run, problem: Problem) -> None:
    """Hold a forward to the oracle."""
    selected = routes(problem)
    out, lse = run(problem, selected)
    with np.errstate(all="ignore"):
        checks.check_output(problem, checks.oracle_masks(problem, selected), out, lse)


def check_padding(run: Run, unit: Any) -> None:
    """Padding may hold anything: no bit of the result depends on it."""
    lengths = ((5, 1, 15, 0, 21), (2, 3, 0, 2, 8))
    problem = problem_of(anchors=("text", "shot", Window(3)), unit=unit, batch=2, key_lengths=lengths)
    check(run, problem)
    selected, arrays = routes(problem), problem.arrays
    spoiled = {}
    for name in ("q", "k", "v"):
        x = getattr(arrays, name).copy()
        for row, sample in enumerate(problem.samples()):
            x[row, ~sample.valid] = np.nan
        spoiled[name] = x
    got, wanted = run(problem.with_arrays(**spoiled), selected), run(problem, selected)
    assert checks.same_bits(got[0], wanted[0])
    assert checks.same_bits(got[1], wanted[1])


def check_poison(run: Run, unit: Any, poison: float) -> None:
    """What a row does not see changes no bit of its result, be it NaN or infinite."""
    problem = problem_of(anchors=("chunk", Window(4)), unit=unit, causal="token", dtype="float16")
    selected, arrays = routes(problem), problem.arrays
    mask = checks.oracle_masks(problem, selected)[0]
    for key in (11, 20):
        k, v = arrays.k.copy(), arrays.v.copy()
        k[:, key], v[:, key] = poison, poison
        got, wanted = run(problem.with_arrays(k=k, v=v), selected), run(problem, selected)
        blind = ~mask[:, :, key]
        assert checks.same_bits(got[0][0].swapaxes(0, 1)[blind], wanted[0][0].swapaxes(0, 1)[blind])
        assert checks.same_bits(got[1][0][blind], wanted[1][0][blind])


def check_sample_alone(run: Run, packed: bool) -> None:
    """A sample's result does not depend on the others of its batch."""
    streams = (movie(2, 5), movie(3, 4)) if packed else (movie(),)
    lengths = ((5, 1, 8, 0, 9), (2, 3, 0, 2, 8))
    problem = problem_of(anchors=("text", "shot"), key_lengths=lengths, batch=1 if packed else 2, packed=packed)
    problem = problem.but(streams=streams)
    selected = routes(problem)
    outs, lses = (checks.pieces(problem, x, axis) for x, axis in zip(run(problem, selected), (0, 1), strict=True))
    start = 0
    for number in range(2):
        part = slice(start, start + streams[number].tokens) if packed else slice(number, number + 1)
        start += streams[number].tokens if packed else 0
        arrays = {name: getattr(problem.arrays, name)[part] for name in ("q", "k", "v")}
        alone = problem.but(
            batch=1, streams=(streams[number if packed else 0],), key_lengths=(lengths[number],)
        ).with_arrays(**arrays)
        own = selected[:, :, part] if packed else selected[part]
        out, lse = run(alone, own[..., : plan_of(alone).slots])
        lead = () if packed else (0,)
        assert checks.same_bits(out[lead], outs[number])
        assert checks.same_bits(lse[lead], lses[number])


def check_slices(run: Run) -> None:
    """A limit on the workspace changes no bit."""
    problem = problem_of(batch=2, heads=4, kv_heads=2)
    selected = routes(problem)
    wanted = run(problem, selected)
    for limit in (1, 150_000):
        got = run(problem, selected, options=protocol.Options(max_workspace=limit))
        assert all(checks.same_bits(x, y) for x, y in zip(got, wanted, strict=True))
