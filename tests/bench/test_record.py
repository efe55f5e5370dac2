"""The facts of a record, recomputed from the spec, the mask and the arrays."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import oracle
from sparsemoc.tuning.problems import PROBLEMS, NamedProblem, arrays

ROOT = Path(__file__).parents[2]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench is no part of the package: it is imported from the root of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return import_module("bench.record")


def _small(name: str) -> NamedProblem:
    one = PROBLEMS[name].shrunk(200, PROBLEMS[name].heads).with_heads(2)
    return dataclasses.replace(one, head_dim=8, v_head_dim=4)


def _dense(problem: NamedProblem) -> np.ndarray[Any, Any]:
    query = np.arange(problem.tokens - problem.queries, problem.tokens)[:, None]
    key = np.arange(problem.tokens)[None, :]
    return (key <= query) if problem.token_causal else np.ones((problem.queries, problem.tokens), bool)


@pytest.mark.parametrize("name", ["paper/single-shot", "flashmoba/8k", "decode/new-shot"])
def test_pairs_and_operations_equal_those_of_the_mask(record: Any, name: str) -> None:
    problem = _small(name)
    given, plan = arrays(problem), problem.plan()
    layout = moc.route(given.q, given.k, problem.spec)
    answer = oracle.run(given.q, given.k, given.v, problem.spec)
    kept, dense = int(answer.mask[0].sum()), 2 * int(_dense(problem).sum())
    assert layout.pairs() == kept
    setting = record.Setting(
        problem=problem, problem_heads=24, plan=plan, dtype="bfloat16", mode="forward", pairs=kept,
        density=layout.density(),
    )  # fmt: skip
    assert setting.dense_pairs == dense
    assert setting.pair_ratio == pytest.approx(dense / kept)
    assert setting.flops("moc") == layout.flops(8, 4) == 2 * kept * 12
    assert setting.flops("dense") == 2 * dense * 12
    backward = dataclasses.replace(setting, mode="forward+backward")
    assert backward.flops("moc") == 7 * kept * 12
    q, k, v = (x.nbytes // 2 for x in (given.q, given.k, given.v))
    out, selected, lse = given.d_out.nbytes // 2, layout.selected.nbytes, 4 * 2 * problem.queries
    assert setting.bytes("moc") == q + k + v + out + selected
    assert setting.bytes("dense") == q + k + v + out
    grads = out + q + k + v
    assert backward.bytes("moc") == 2 * (q + k + v + out + selected) + grads + 2 * lse
    route = dataclasses.replace(setting, mode="route")
    assert route.bytes("moc") == q + k + selected
    assert route.flops("moc") == given.k.size + 2 * 8 * 2 * problem.queries * plan.chunks


def test_fields_name_the_problem_and_its_routing(record: Any) -> None:
    problem = _small("moba/32k")
    plan = problem.plan()
    setting = record.Setting(
        problem=problem, problem_heads=1, plan=plan, dtype="float32", mode="route", pairs=100, density=0.5
    )
    fields = setting.fields()
    assert json.loads(json.dumps(fields)) == fields
    assert moc.RoutingSpec.from_json(json.dumps(fields["spec"])) == problem.spec
    lengths = np.diff(oracle.chunk_bounds(problem.spec, problem.stream))
    assert (fields["chunks"], fields["chunk"]) == (len(lengths), pytest.approx(lengths.mean()))
    assert (fields["top_k"], fields["heads"], fields["problem_heads"], fields["mode"]) == (2, 2, 1, "route")
    assert (fields["tokens"], fields["queries"]) == (problem.tokens, problem.queries)


def test_the_hash_of_a_spec_is_stable_and_tells_specs_apart(record: Any) -> None:
    """Records of months ago are found by it."""
    spec = moc.RoutingSpec(stream=moc.Stream((moc.Segment("video", 64),)), chunks=moc.Chunks(size=16), top_k=2)
    assert record.spec_hash(spec) == record.spec_hash(moc.RoutingSpec.from_json(spec.to_json())) == HASH
    assert record.spec_hash(dataclasses.replace(spec, top_k=1)) != HASH


HASH = "2a5c8d924753"


def test_the_roofline_is_the_lower_of_its_two_sides(record: Any) -> None:
    peaks = import_module("bench.roofline").Peaks(flops_per_s=100.0, bytes_per_s=10.0, how="by hand")
    told = peaks.record(flops=50, nbytes=2, seconds=1.0)
    assert (told["share"], told["bound"], told["how"]) == (0.5, "compute", "by hand")
    told = peaks.record(flops=50, nbytes=20, seconds=4.0)
    assert (told["share"], told["bound"]) == (0.5, "memory")  # 12.5 FLOP/s of the 25 that 10 bytes a second feed
