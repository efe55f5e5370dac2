"""The check by sampled rows takes what the oracle gives, and refuses what is a little off: any dtype, any grouping."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsemoc.testing import oracle
from sparsemoc.testing.problems import dtype_of
from sparsemoc.tuning.problems import PROBLEMS, NamedProblem

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def _problem(name: str) -> NamedProblem:
    """Four heads of two key heads, and a v_head_dim of its own."""
    one = PROBLEMS[name].shrunk(160, PROBLEMS[name].heads)
    return dataclasses.replace(one, heads=4, kv_heads=2, head_dim=8, v_head_dim=6)


def _answered(name: str, dtype: str) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """Return the question, the routes, and what the oracle gives: under them, and for dense attention."""
    problem = _problem(name)
    x = import_module("bench.inputs").inputs(problem, dtype, "cpu")
    asked = import_module("bench.refcheck").Question(name, problem.spec, x)
    wide = [array.astype(np.float64) for array in x.all]
    answer = oracle.run(wide[0], wide[1], wide[2], problem.spec)
    query = np.arange(problem.tokens - problem.queries, problem.tokens)[:, None]
    every = np.ones((4, problem.queries, problem.tokens), bool)
    if problem.token_causal:
        every &= np.arange(problem.tokens) <= query
    return asked, answer.selected, *(_results(wide, mask, dtype) for mask in (answer.mask[0], every))


def _results(wide: list[Any], mask: Any, dtype: str) -> dict[str, Any]:
    q, k, v, d_out = (array[0] for array in wide)
    scale = q.shape[2] ** -0.5
    out, lse = oracle.attention(q, k, v, mask, scale)
    grads = oracle.gradients(q, k, v, mask, scale, d_out)
    rounded = {"out": out, **dict(zip(("dq", "dk", "dv"), grads, strict=True))}
    return {"lse": lse[None].astype(np.float32), **{n: x[None].astype(dtype_of(dtype)) for n, x in rounded.items()}}


CASES = [("paper/single-shot", "float32"), ("moba/32k", "bfloat16"), ("decode/new-shot", "float16"),
         ("hunyuanvideo/720p", "float32")]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_what_the_oracle_gives_passes(name: str, dtype: str) -> None:
    refcheck, refkeys = import_module("bench.refcheck"), import_module("bench.refkeys")
    asked, selected, results, dense = _answered(name, dtype)
    by_query = {key: results[key] for key in ("out", "lse", "dq")}
    told = refcheck.check(asked, selected, by_query, rows=12)
    assert (told["rows"], told["routes"]) == (4 * len(asked.sampled(12)), "equal")
    assert refcheck.check(asked, selected, by_query, rows=12, each=2)["rows"] == 2 * len(asked.sampled(12))
    refcheck.check_dense(asked, {key: dense[key] for key in ("out", "lse", "dq")}, rows=12)
    plan = _problem(name).plan()
    assert refkeys.check(asked, plan, selected, results).keys() == {"dk", "dv"}
    for grads in (results, dense):
        assert max(refkeys.check_identities(asked, grads).values()) <= 0.01


@pytest.mark.parametrize(("name", "dtype"), CASES[:2])
@pytest.mark.parametrize("wrong", ["out", "lse", "dq", "dk", "dv"])
def test_what_is_off_is_refused(name: str, dtype: str, wrong: str) -> None:
    refcheck, refkeys = import_module("bench.refcheck"), import_module("bench.refkeys")
    asked, selected, results, dense = _answered(name, dtype)
    factor = 1.001 if dtype == "float32" else 1.3
    for given in (results, dense):
        given[wrong] = (given[wrong].astype(np.float64) * factor).astype(given[wrong].dtype)
    dense["dk"] = np.roll(dense["dk"], 1, axis=1)  # an identity of dk sees its keys, not its size
    plan, off = _problem(name).plan(), rf"{wrong} is off by"
    if wrong in ("dk", "dv"):
        with pytest.raises(refcheck.RefcheckError, match=off):
            refkeys.check(asked, plan, selected, results)
        with pytest.raises(refcheck.RefcheckError, match="the sides of"):
            refkeys.check_identities(asked, dense)
        return
    with pytest.raises(refcheck.RefcheckError, match=off):
        refcheck.check(asked, selected, {wrong: results[wrong]})
    with pytest.raises(refcheck.RefcheckError, match=off):
        refcheck.check_dense(asked, {wrong: dense[wrong]})


def test_attention_of_other_keys_is_refused() -> None:
    """Dense results are none of the routed ones, nor the other way round."""
    refcheck = import_module("bench.refcheck")
    asked, selected, results, dense = _answered("moba/32k", "float32")
    with pytest.raises(refcheck.RefcheckError, match="out is off by"):
        refcheck.check(asked, selected, {"out": dense["out"]})
    with pytest.raises(refcheck.RefcheckError, match="out is off by"):
        refcheck.check_dense(asked, {"out": results["out"]})


def test_routes_that_are_not_the_best_are_refused() -> None:
    refcheck = import_module("bench.refcheck")
    asked, selected, results, _ = _answered("paper/single-shot", "float32")
    x = asked.inputs
    worst = oracle.run(-x.q, x.k, x.v, asked.spec).selected
    with pytest.raises(refcheck.RefcheckError, match="a chunk with a lower score was taken"):
        refcheck.check(asked, worst, {"out": results["out"]})
    with pytest.raises(refcheck.RefcheckError, match="of its candidates"):
        refcheck.check(asked, np.full_like(selected, -1), {"out": results["out"]})
    twice = np.repeat(selected[..., :1], selected.shape[-1], axis=3)
    with pytest.raises(refcheck.RefcheckError, match="of its candidates"):
        refcheck.check(asked, twice, {"out": results["out"]})


def test_nan_is_refused() -> None:
    refcheck = import_module("bench.refcheck")
    asked, selected, results, dense = _answered("paper/single-shot", "float32")
    for given in (results, dense):
        given["out"][0, 3, 1, 2] = np.nan
    with pytest.raises(refcheck.RefcheckError, match="out holds NaN or infinity"):
        refcheck.check(asked, selected, {"out": results["out"]})
    with pytest.raises(refcheck.RefcheckError, match="out holds NaN or infinity"):
        refcheck.check_dense(asked, {"out": dense["out"]})
