"""Pool, route, route dropout and index in Triton's interpreter, against the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given

from sparsemoc.backends.triton import candidates, routing, signatures_routing
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.spec.anchors import Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import partial_anchors, problems
from tests.backends.triton.routing_checks import (
    SMALL,
    check_index,
    check_problem,
    check_selection,
    routed,
    tables_of,
)

#: The interpreter takes about half a second for a problem.
FEW = hypothesis.settings(max_examples=8)
#: Eighty tokens of three kinds, in chunks of 2: more than one mask word, more than one tile of every kernel.
STREAM = Stream((Segment("text", 5), Segment("video", 34, shot=0), Segment("audio", 12, shot=1), Segment("video", 29)))
LARGE = Problem(
    spec=RoutingSpec(chunks=Chunks(size=2), top_k=(5, 1), anchors=("chunk", Window(7)), causal="chunk"),
    streams=(STREAM,), heads=2, kv_heads=1, head_dim=20,
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")


@given(problems(dtypes=DTYPES, dropout=False, pairs=2**12))
@FEW
def test_any(problem: Problem) -> None:
    check_problem(problem)


@given(problems(dtypes=DTYPES, dropout=False, pairs=2**12, padding=True, anchor=partial_anchors()))
@FEW
def test_padding_and_partial_anchors(problem: Problem) -> None:
    check_problem(problem)


@given(problems(dtypes=DTYPES, dropout=True, packed=True, pairs=2**12))
@FEW
def test_dropout_packed(problem: Problem) -> None:
    check_problem(problem)


@given(problems(dtypes=("bfloat16",), dropout=True, packed=False, pairs=2**12))
@FEW
def test_dropout(problem: Problem) -> None:
    check_problem(problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", ["token", Block(5)])
def test_default_tiles(dtype: str, unit: str | Block) -> None:
    spec = replace(LARGE.spec, unit=unit, dropout=RouteDropout(off=0.9, into=2.0, into_max=3))
    check_problem(LARGE.but(dtype=dtype, spec=spec, training=True, seed=-7), TritonConfig())


def test_a_seed_on_the_device_gives_the_same_routes() -> None:
    problem = LARGE.but(spec=replace(LARGE.spec, dropout=RouteDropout(off=0.9, into=2.0)))
    found = routed(problem, SMALL, torch.tensor(5 - 2**63))[1]
    assert torch.equal(found, routed(problem, SMALL, 2**63 + 5)[1])


def test_what_padding_holds_changes_no_bit() -> None:
    lengths = ((2, 31, 12, 0), (5, 34, 1, 17))
    problem = LARGE.but(batch=2, key_lengths=lengths)
    padded = np.ones((2, STREAM.tokens), bool)
    for valid, row in zip(padded, lengths, strict=True):
        for start, length in zip(STREAM.bounds[:-1], row, strict=True):
            valid[start : start + length] = False
    q, k = problem.arrays.q.copy(), problem.arrays.k.copy()
    q[padded], k[padded] = np.nan, np.inf
    spoiled = routed(problem.with_arrays(q=q, k=k), SMALL)
    for found, wanted in zip(spoiled, routed(problem, SMALL), strict=True):
        assert torch.equal(found, wanted)


def test_a_sample_does_not_depend_on_the_batch() -> None:
    problem = LARGE.but(batch=2)
    alone = problem.but(batch=1).with_arrays(q=problem.arrays.q[1:2], k=problem.arrays.k[1:2])
    for found, wanted in zip(routed(problem, SMALL), routed(alone, SMALL), strict=True):
        assert torch.equal(found[1:2], wanted)


def test_infinite_scores_are_no_nan() -> None:
    """Infinity times a piece that is 0 is a NaN: it must not become the score."""
    spec = RoutingSpec(chunks=Chunks(size=1), top_k=2, anchors=(), dense_queries=())
    problem = Problem(spec=spec, streams=(Stream((Segment("video", 4),)),))
    q = np.full((1, 4, 1, 1), np.inf, np.float32)
    k = np.array([-1, 0.5, -3, 2], np.float32).reshape(1, 4, 1, 1)
    assert (routed(problem.with_arrays(q=q, k=k), SMALL)[1] == torch.tensor([1, 3])).all()
    # infinity - infinity and infinity * 0 are NaN in exact arithmetic too, and come first
    k[0, 2] = 0
    assert (routed(problem.with_arrays(q=q, k=k), SMALL)[1] == torch.tensor([1, 2])).all()


def test_scores_are_right_to_float32() -> None:
    """Means that differ in the 23rd bit alone, on top of an offset: bfloat16 products would not tell them apart."""
    spec = RoutingSpec(chunks=Chunks(size=1), top_k=1, anchors=(), dense_queries=())
    problem = Problem(spec=spec, streams=(Stream((Segment("video", 8),)),), head_dim=2)
    k = np.ones((1, 8, 1, 2), np.float32)
    k[0, 5, 0, 0] += 2.0**-23
    q = np.full((1, 8, 1, 2), [1.0, 0.0], np.float32)
    assert (routed(problem.with_arrays(q=q, k=k), SMALL)[1] == 5).all()


def test_many_routes() -> None:
    stream = Stream((Segment("video", 140),))
    problem = Problem(spec=RoutingSpec(chunks=Chunks(size=1), top_k=130), streams=(stream,), q_tokens=3, head_dim=8)
    _, selected = routed(problem, TritonConfig())
    check_selection(problem, selected.numpy())
    check_index(problem, selected, TritonConfig())


class Recorder:
    """In place of a kernel: holds the arguments of its launches against what CI compiles, and launches it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            given_ = dict(zip(self.kernel.arg_names, args, strict=False))
            named = {name: value for name, value in options.items() if name in self.kernel.arg_names}
            assert set(options) - set(named) == {"num_warps", "num_stages"}
            self.launches.append(given_ | named)
            self.kernel[grid](*args, **options)

        return launch


TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_are_launched_as_ci_compiles_them(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = signatures_routing.kernels(SMALL, 20, 20, dtype)
    recorders = {}
    for name in {variant.kernel.__name__ for variant in variants}:
        module = candidates if name == "candidates_kernel" else routing
        recorders[name] = Recorder(getattr(module, name))
        monkeypatch.setattr(module, name, recorders[name])
    dropout = RouteDropout(off=0.5, into=1.0)
    problem = LARGE.but(dtype=dtype, spec=replace(LARGE.spec, dropout=dropout), key_lengths=((5, 34, 12, 3),))
    tables, _ = tables_of(problem)
    routing.index(tables, routed(problem, SMALL, 1)[1], SMALL)
    for variant in variants:
        launched = recorders[variant.kernel.__name__].launches
        assert launched
        for arguments in launched:
            assert list(variant.signature) == variant.kernel.arg_names
            assert set(arguments) == set(variant.signature)
            for name, value in arguments.items():
                wanted = variant.signature[name]
                if isinstance(value, torch.Tensor):
                    assert TYPES[value.dtype] == wanted, name
                else:
                    assert wanted in ("constexpr", "i32"), name
            shapes = {name for name in variant.constants if name.isupper()}
            assert shapes == {name for name in arguments if name.isupper()}


def test_envelopes_hold_every_candidate() -> None:
    tables, ends = tables_of(LARGE)
    bits = tables.candidates(ends).bits.numpy()[0]
    shown_ = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
    units = tables.geometry.units
    for size, chunks in ((16, 16), (7, 32)):
        for tile, (first, end) in enumerate(tables.envelope(size, chunks).tolist()):
            taken = np.flatnonzero(shown_[units.unit_run[tile * size : (tile + 1) * size]].any(axis=0))
            assert first % chunks == 0
            assert not len(taken) or (first <= taken[0] and taken[-1] < end)


def test_strides_of_0_and_transposed_change_no_bit() -> None:
    tables, ends = tables_of(LARGE)
    k = torch.randn(1, STREAM.tokens, 1, 20, generator=torch.Generator().manual_seed(0)).expand(2, -1, 2, -1)
    q = k.flip(1)[:, :, :1].expand(-1, -1, 4, -1)

    def run(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = routing.pool(tables, k, ends, SMALL)
        return means, routing.route(tables, q, means, ends, (3,) * 4, 3, None, None, SMALL)

    wanted = run(q.contiguous(), k.contiguous())
    for shown_q, shown_k in ((q, k), (q.mT.contiguous().mT, k.transpose(0, 3).contiguous().transpose(0, 3))):
        assert all(torch.equal(found, right) for found, right in zip(run(shown_q, shown_k), wanted, strict=True))
