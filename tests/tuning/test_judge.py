"""The judge: every planted fault is caught, wherever it is; every right result is let through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsemoc.backends import Result, get_backend
from sparsemoc.testing.problems import Block, Chunks, First, Problem, RouteDropout, RoutingSpec, Segment, Stream, Window
from sparsemoc.tuning.judge import Judge
from sparsemoc.tuning.sampled import parts_of
from sparsemoc.tuning.work import Work
from tests.tuning.planted import Planted, PlantedConfig, works

Array = NDArray[Any]
Fault = Callable[[Any], Any]

STREAM = Stream((Segment("text", 10), Segment("video", 140)))
SPEC = RoutingSpec(chunks=Chunks(size=16), top_k=3, anchors=("chunk",))
PROBLEM = Problem(SPEC, (STREAM,), heads=4, kv_heads=2, head_dim=8, v_head_dim=4)
#: Head 1 is not looked at.
UNSEEN = 1


def judged(problem: Problem, operation: str, fault: Fault, config: int = 1) -> str:
    """Return what the judge says of what a fault makes of right results; an empty text if it lets them through."""
    backend = Planted()
    work = works(problem, backend)[operation]
    judge = Judge(work)
    if config == 0:
        backend.faults[0] = fault
        return judge.default(work.run(None)).reason or ""
    assert judge.default(work.run(None)).reason is None
    backend.faults[1] = fault
    return judge.candidate(PlantedConfig(number=1)).reason or ""


def unseen_row() -> int:
    """Return a query that no sampled block holds."""
    problem = works(PROBLEM, Planted())["attend"].problem
    seen = {row for part in parts_of(problem, None) for lo, hi in part.blocks for row in range(lo, hi)}
    assert 0 in seen
    assert 149 in seen
    assert len(seen) < 60
    return max(set(range(150)) - seen)


def changed(array: Array, place: Any, change: Callable[[Array], Any]) -> Array:
    """Return a copy with a place changed."""
    array = array.copy()
    array[place] = change(array[place])
    return array


def at(name: str, place: Any, change: Callable[[Array], Any]) -> Fault:
    """Return the fault of one place of out, lse, dq, dk or dv."""

    def fault(results: Any) -> Any:
        names = ("out", "lse") if isinstance(results, Result) else ("dq", "dk", "dv")
        found = [changed(x, place, change) if one == name else x for one, x in zip(names, results, strict=True)]
        return Result(*found) if isinstance(results, Result) else tuple(found)

    return fault


def off(share: float) -> Callable[[Array], Any]:
    return lambda x: x * (1 + share)


FAULTS: dict[str, tuple[str, Fault, str]] = {
    "another scale": ("attend", lambda r: Result(r.out, r.lse * 1.01), "lse["),
    "a sampled row of out": ("attend", at("out", (0, 0, 0), off(0.01)), "out[0, 0:"),
    "an unsampled head of out": ("attend", at("out", (0, 75, UNSEEN), off(0.01)), "out[0, 75, 1]"),
    "an unsampled head of lse": ("attend", at("lse", (0, UNSEEN, 75), lambda x: x + 1e-3), "lse[0, 1, 75]"),
    "lse alone": ("attend", lambda r: Result(r.out, r.lse + 1e-3), "lse["),
    "rows of the next query": ("attend", lambda r: Result(np.roll(r.out, 1, axis=1), r.lse), "out["),
    "heads swapped": ("attend", lambda r: Result(r.out[:, :, ::-1], r.lse), "out["),
    "NaN": ("attend", at("out", (0, 75, UNSEEN, 0), lambda x: np.nan), "out[0, 75, 1]"),
    "infinity": ("attend", at("lse", (0, UNSEEN, 75), lambda x: np.inf), "lse[0, 1, 75]"),
    "another shape": ("attend", lambda r: Result(r.out[:, 1:], r.lse), "out must be float32 [1, 150, 4, 4], got"),
    "another dtype": ("attend", lambda r: Result(r.out, r.lse.astype(np.float64)), "lse must be float32 [1, 4, 150]"),
    "no array": ("attend", lambda r: Result(None, r.lse), "out must be an array, got NoneType"),
    "dq": ("attend_backward", at("dq", (0, 75, UNSEEN), off(0.01)), "dq[0, 75, 1]"),
    "dk alone": ("attend_backward", at("dk", (0, 80, 1), off(0.1)), "dk[0, 80, 1]"),
    "dv alone": ("attend_backward", at("dv", (0, 80, 0), off(0.1)), "dv[0, 80, 0]"),
    "a dk of 0": ("attend_backward", at("dk", (0, 33, 0), off(-1)), "dk[0, 33, 0]"),
    "NaN in dv": ("attend_backward", at("dv", (0, 80, 0, 1), lambda x: np.nan), "dv[0, 80, 0]"),
    "another shape of dk": ("attend_backward", lambda r: (r[0], r[1][:, :, :1], r[2]), "dk must be"),
    "a chunk": ("pool", lambda c: changed(c, (0, 1, 5), off(0.001)), "centroids[0, 1"),
    "chunks off by one": ("pool", lambda c: np.roll(c, 1, axis=2), "centroids["),
    "centroids in float64": ("pool", lambda c: c.astype(np.float64), "centroids must be float32"),
    "no route": ("route", lambda s: changed(s, (0, UNSEEN, 75), lambda x: -1), "the reference takes"),
    "another route": ("route", lambda s: np.roll(s, 1, axis=2), "selected["),
    "another order": ("route", lambda s: changed(s, (0, UNSEEN, 75), lambda x: x[::-1]), "it does not ascend"),
    "a chunk twice": ("route", lambda s: changed(s, (0, UNSEEN, 75), lambda x: x[0]), "it does not ascend"),
    "a chunk beyond": ("route", lambda s: changed(s, (0, UNSEEN, 75, 2), lambda x: 99), "not all are candidates"),
    "int64": ("route", lambda s: s.astype(np.int64), "selected must be int32"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_candidate_is_caught(name: str) -> None:
    operation, fault, text = FAULTS[name]
    assert text in judged(PROBLEM, operation, fault)


@pytest.mark.parametrize("share", [1e-7, -1e-7])
def test_a_last_digit_is_no_fault(share: float) -> None:
    def rounded(r: Any) -> Any:
        found = [(x * (1 + share)).astype(x.dtype) for x in r]
        return Result(*found) if isinstance(r, Result) else tuple(found)

    for operation in ("attend", "attend_backward"):
        assert judged(PROBLEM, operation, rounded) == ""
    assert judged(PROBLEM, "pool", lambda c: (c * (1 + share)).astype(c.dtype)) == ""


@pytest.mark.parametrize("operation", ["attend", "attend_backward"])
def test_a_single_unsampled_row_is_compared_with_the_default(operation: str) -> None:
    row = unseen_row()
    name = "out" if operation == "attend" else "dq"
    assert f"{name}[0, {row}, 0]" in judged(PROBLEM, operation, at(name, (0, row, 0), off(0.02)))


DEFAULT_FAULTS: dict[str, tuple[str, Fault]] = {
    "out": ("attend", lambda r: Result(r.out * 1.01, r.lse)),
    "lse": ("attend", lambda r: Result(r.out, r.lse + 1e-3)),
    "last row": ("attend", at("out", (0, 149, 3), off(0.01))),
    "dq": ("attend_backward", lambda r: (r[0] * 1.01, r[1], r[2])),
    "dk": ("attend_backward", lambda r: (r[0], np.roll(r[1], 1, axis=1), r[2])),
    "dv of another head": ("attend_backward", lambda r: (r[0], r[1], r[2][:, :, ::-1])),
    "dv with a key left out": ("attend_backward", at("dv", (0, 0), off(-1))),
    "centroids": ("pool", lambda c: c * np.float32(1.001)),
    "routes of another query": ("route", lambda s: np.roll(s, 16, axis=2)),
    "a route that is no candidate": ("route", lambda s: changed(s, (0, UNSEEN, 75, 2), lambda x: 99)),
    "too few routes": ("route", lambda s: np.concatenate([s[..., :2], np.full_like(s[..., :1], -1)], axis=-1)),
}


@pytest.mark.parametrize("name", DEFAULT_FAULTS)
def test_a_fault_of_the_default_is_caught(name: str) -> None:
    operation, fault = DEFAULT_FAULTS[name]
    assert judged(PROBLEM, operation, fault, config=0) != ""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_hides_no_key_tile(dtype: str) -> None:
    """A candidate that leaves out a chunk's worth of keys, beside one that rounds to the input dtype as it may."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16")
    problem = PROBLEM.but(dtype=dtype)
    work = works(problem, Planted())["attend"]
    q, k, v, layout, scale = work.arguments
    fewer = layout.selected.copy()
    fewer[0, UNSEEN, 75, (fewer[0, UNSEEN, 75] >= 0).sum() - 1] = -1
    short = get_backend("reference").attend(work.problem, q, k, v, replace(layout, selected=fewer), scale)
    assert "lse[0, 1, 75]" in judged(problem, "attend", lambda r: Result(r.out, short.lse))
    assert "out[0, 75, 1]" in judged(problem, "attend", lambda r: Result(short.out, r.lse))

    def rounded(r: Result) -> Result:
        return Result(np.nextafter(r.out.astype(np.float32), 0).astype(r.out.dtype), r.lse)

    assert judged(problem, "attend", rounded) == ""


def test_ties_that_are_exact_go_to_the_lower_chunk() -> None:
    problem = PROBLEM.but(data="equal")

    def higher(selected: Array) -> Array:
        """Every query takes the highest of its candidates, which all tie."""
        found = selected.copy()
        found[0, :, 149] = [6, 7, 8]
        return found

    assert "no rounding explains" in judged(problem, "route", higher)


def test_ties_that_rounding_may_break_are_no_fault() -> None:
    arrays = PROBLEM.arrays
    flat = np.broadcast_to(arrays.k[:, :1], arrays.k.shape)
    noise = 1 + 1e-8 * np.random.default_rng(0).standard_normal(arrays.k.shape)
    problem = PROBLEM.with_arrays(k=(flat * noise).astype(np.float32))

    def other(selected: Array) -> Array:
        found = selected.copy()
        found[0, :, 149] = [6, 7, 8]
        return found

    assert judged(problem, "route", other) == ""


def test_routes_of_queries_that_have_none_are_a_fault() -> None:
    """The text's queries are dense; padded ones see nothing."""
    dense = judged(PROBLEM, "route", lambda s: changed(s, (0, 0, 3, 0), lambda x: 4))
    assert "selected[0, 0, 3] is [4, -1, -1]: not all are candidates" in dense
    padded = PROBLEM.but(key_lengths=((10, 130),))

    def fault(selected: Array) -> Array:
        return changed(selected, (0, 0, 145, 0), lambda x: 4)

    assert "selected[0, 0, 145] differs from the default's, where nothing is routed" in judged(padded, "route", fault)
    assert "must hold candidates" in judged(padded, "route", fault, config=0)


DROPOUT = PROBLEM.but(
    spec=replace(SPEC, unit=Block(3), dropout=RouteDropout(off=0.5, into=1.0, into_max=2)), training=True, seed=7
)


def test_dropout_by_other_words_is_a_fault() -> None:
    other = works(DROPOUT.but(seed=8), Planted())["route"].run(None)
    assert "the reference takes" in judged(DROPOUT, "route", lambda s: other)
    assert "the reference takes" in judged(DROPOUT, "route", lambda s: other, config=0)
    assert judged(DROPOUT, "route", lambda s: s) == ""


PADDED = (Stream((Segment("text", 8), Segment("video", 40), Segment("video", 30))),)
PACKED = (
    Stream((Segment("video", 60),)),
    Stream((Segment("text", 5), Segment("video", 30))),
    Stream((Segment("video", 1),)),
)
RIGHT: dict[str, Problem] = {
    "float16": PROBLEM.but(dtype="float16"),
    "bfloat16": PROBLEM.but(dtype="bfloat16"),
    "float64": PROBLEM.but(dtype="float64"),
    "padded": PROBLEM.but(streams=PADDED, batch=3, key_lengths=((8, 40, 30), (3, 0, 11), (0, 0, 0))),
    "packed": PROBLEM.but(streams=PACKED, packed=True),
    "packed, padded": PROBLEM.but(streams=PACKED, packed=True, key_lengths=((50,), (0, 7), (1,)), dtype="float16"),
    "token causal": PROBLEM.but(spec=replace(SPEC, causal="token", anchors=("chunk", First(3), Window(5)))),
    "blocks": PROBLEM.but(spec=replace(SPEC, unit=Block(7))),
    "dropout": DROPOUT,
    "one query": PROBLEM.but(q_start=140, q_tokens=1),
    "some queries": PROBLEM.but(q_start=33, q_tokens=50, spec=replace(SPEC, unit=Block(7))),
    "no anchors": PROBLEM.but(spec=replace(SPEC, anchors=(), top_k=1, causal="token")),
    "top_k by head": PROBLEM.but(spec=replace(SPEC, top_k=(1, 2, 3, 4))),
    "ties": PROBLEM.but(data="equal"),
    "offset": PROBLEM.but(data="offset", dtype="float16"),
    "huge": PROBLEM.but(data="huge"),
    "negative scale": PROBLEM.but(scale=-0.7),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backend_is_let_through(name: str) -> None:
    if RIGHT[name].dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16")
    pytest.importorskip("numba", reason="the backend under judgement")
    found = works(RIGHT[name], get_backend("numba"))
    assert set(found) == {"pool", "route", "attend", "attend_backward"}
    for work in (*found.values(), without_d_lse(found["attend_backward"])):
        judge = Judge(work)
        verdict = judge.default(work.run(None))
        assert verdict.reason is None
        assert verdict.share < 0.5
        assert judge.candidate(work.backend.default_config(work.problem)).reason is None


def without_d_lse(work: Work) -> Work:
    return replace(work, arguments=(*work.arguments[:-1], None))


def test_tensors_are_judged_where_they_are() -> None:
    torch = pytest.importorskip("torch", reason="tensors")
    for dtype in (torch.float32, torch.bfloat16):
        base = works(PROBLEM, get_backend("reference"))["attend"]
        backend = Planted(base=cast("Any", _Tensors(dtype)))
        q, k, v = (torch.from_numpy(x).to(dtype) for x in base.arguments[:3])
        layout = replace(base.arguments[3], selected=torch.from_numpy(base.arguments[3].selected))
        problem = replace(base.problem, framework="torch", dtype=str(dtype).removeprefix("torch."))
        work = Work(backend, problem, "attend", (q, k, v, layout, 0.3))
        judge = Judge(work)
        assert judge.default(work.run(None)).reason is None
        assert judge.candidate(PlantedConfig(number=1)).reason is None
        backend.faults[1] = lambda r: Result(_scaled(r.out, (0, 75, UNSEEN)), r.lse)
        assert "out[0, 75, 1]" in str(judge.candidate(PlantedConfig(number=1)).reason)


def _scaled(tensor: Any, place: tuple[int, ...]) -> Any:
    tensor = tensor.clone()
    tensor[place] *= 1.5
    return tensor


class _Tensors:
    """The reference on tensors."""

    name, capabilities = "tensors", get_backend("reference").capabilities

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def attend(self, problem: Any, q: Any, k: Any, v: Any, layout: Any, scale: float) -> Result:
        import torch

        own = replace(problem, framework="numpy", dtype="float32")
        q, k, v = (x.float().numpy() for x in (q, k, v))
        found = get_backend("reference").attend(own, q, k, v, layout.on_host(), scale)
        return Result(torch.from_numpy(found.out).to(self.dtype), torch.from_numpy(found.lse))
