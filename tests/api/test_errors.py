"""Specs, numbers, flags and backends that break a rule: the exception and its whole text; and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends.reference import BACKEND, ReferenceBackend

#: A call; the exception; the text. One entry for each way to be wrong.
CASES: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "a spec in a dict": (
        lambda c: c.attention(spec={"top_k": 3}), moc.SpecError,
        "attention: spec must be a RoutingSpec, got {'top_k': 3} (dict). Hint: sparsemoc.load_spec(path).",
    ),
    "a spec by path": (
        lambda c: c.route(spec="spec.toml"), moc.SpecError,
        "route: spec must be a RoutingSpec, got 'spec.toml' (str). Hint: sparsemoc.load_spec(path).",
    ),
    "no spec": (
        lambda c: c.grads(spec=None), moc.SpecError,
        "attention_grads: spec must be a RoutingSpec, got None (NoneType). Hint: sparsemoc.load_spec(path).",
    ),
    "top_k of other heads": (
        lambda c: c.attention(spec=replace(c.SPEC, top_k=(1, 2))), moc.SpecError,
        "RoutingSpec: top_k must hold one number per query head, 4, got 2 numbers. "
        "Hint: give one number for all heads.",
    ),
    "scale nan": (
        lambda c: c.attention(scale=float("nan")), moc.SpecError,
        "attention: scale must be a finite number, or None for head_dim ** -0.5, got nan (float).",
    ),
    "scale infinite": (
        lambda c: c.attend(scale=np.float32("inf")), moc.SpecError,
        "attend: scale must be a finite number, or None for head_dim ** -0.5, got np.float32(inf) (float32).",
    ),
    "scale text": (
        lambda c: c.grads(scale="0.1"), moc.SpecError,
        "attention_grads: scale must be a finite number, or None for head_dim ** -0.5, got '0.1' (str).",
    ),
    "scale true": (
        lambda c: c.attention(scale=np.True_), moc.SpecError,
        "attention: scale must be a finite number, or None for head_dim ** -0.5, got np.True_ (bool).",
    ),
    "scale complex": (
        lambda c: c.attention(scale=1j), moc.SpecError,
        "attention: scale must be a finite number, or None for head_dim ** -0.5, got 1j (complex).",
    ),
    "scale per head": (
        lambda c: c.attention(scale=np.ones(1)), moc.SpecError,
        "attention: scale must be a finite number, or None for head_dim ** -0.5, got array([1.]) (ndarray).",
    ),
    "scale too large": (
        lambda c: c.attention(scale=10**400), moc.SpecError,
        f"attention: scale must be a finite number, or None for head_dim ** -0.5, got 1{'0' * 76}... (int).",
    ),
    "seed missing": (
        lambda c: c.attention(spec=c.DROPOUT, training=True), moc.SpecError,
        "attention: seed must be given when training with route dropout, got None. Hint: seed=step.",
    ),
    "seed text": (
        lambda c: c.attention(seed="1"), moc.SpecError,
        "attention: seed must be a whole number or a 0-d integer array, got '1' (str). Hint: seed=0.",
    ),
    "seed float": (
        lambda c: c.route(spec=c.DROPOUT, training=True, seed=1.0), moc.SpecError,
        "route: seed must be a whole number or a 0-d integer array, got 1.0 (float). Hint: seed=0.",
    ),
    "seed of rank 1": (
        lambda c: c.grads(spec=c.DROPOUT, training=True, seed=np.array([1])), moc.SpecError,
        "attention_grads: seed must be a whole number or a 0-d integer array, got array([1]) (ndarray). Hint: seed=0.",
    ),
    "training": (
        lambda c: c.attention(training="yes"), moc.SpecError,
        "attention: training must be True or False, got 'yes' (str).",
    ),
    "deterministic": (
        lambda c: c.attend(deterministic=1), moc.SpecError,
        "attend: deterministic must be True, False or None, got 1 (int).",
    ),
    "return_lse": (
        lambda c: c.attention(return_lse=1), moc.SpecError, "attention: return_lse must be True or False, got 1 (int).",
    ),
    "return_lse of attend": (
        lambda c: c.attend(return_lse="no"), moc.SpecError, "attend: return_lse must be True or False, got 'no' (str).",
    ),
    "return_layout": (
        lambda c: c.attention(return_layout=None), moc.SpecError,
        "attention: return_layout must be True or False, got None (NoneType).",
    ),
    "batch_start": (
        lambda c: c.attention(batch_start=-1), moc.SpecError,
        "attention: batch_start must be a whole number >= 0, got -1 (int).",
    ),
    "head_start": (
        lambda c: c.route(head_start=2**32), moc.SpecError,
        "route: head_start must be a whole number >= 0 and <= 4294967295, got 4294967296 (int).",
    ),
    "an unknown backend": (
        lambda c: c.attention(backend="numbas"), moc.UnsupportedError,
        'attention: backend must be "auto", "numba", "triton", "cupy" or "reference", got \'numbas\' (str). '
        'Did you mean "numba"?',
    ),
    "a backend of another kind": (
        lambda c: c.pool(backend=3), moc.UnsupportedError,
        'pool: backend must be "auto", "numba", "triton", "cupy" or "reference", got 3 (int).',
    ),
    "the class of a backend": (
        lambda c: c.attention(backend=ReferenceBackend), moc.SpecError,
        "attention: backend must be a name or a Backend object, got the class ReferenceBackend.",
    ),
    "a config of another kind": (
        lambda c: c.attention(config={"rows": 3}), moc.SpecError,
        'attention: config must be a ReferenceConfig for backend "reference", or None, got {\'rows\': 3} (dict).',
    ),
    "options of another kind": (
        lambda c: c.attend(options={"checked": True}), moc.SpecError,
        "attend: options must be an Options value or None, got {'checked': True} (dict). Hint: Options(checked=True).",
    ),
    "a precision that is not offered": (
        lambda c: c.attention(options=moc.Options(precision="tf32")), moc.UnsupportedError,
        'attention: backend "reference" computes in ieee precision, not tf32 '
        "(float32 on cpu (numpy), heads 4/2, head_dim 8/6). "
        'Hint: backend="auto" chooses one that can, if there is one.',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument(name: str, calls: Any, text_of: Any) -> None:
    call, kind, text = CASES[name]
    assert text_of(kind, lambda: call(calls)) == text


class Odd(np.ndarray[Any, Any]):
    """An array whose library is unknown, but which is a NumPy array."""


def test_what_is_allowed(calls: Any) -> None:
    calls.packed()
    calls.grads(d_lse=calls.LSE)
    calls.attend()
    calls.route(k=None, centroids=calls.CENTROIDS)
    calls.attention(q=calls.Q.view(Odd))
    for scale in (0, -1.5, np.float64(2), np.array(0.5), np.array(2), ml_dtypes.bfloat16(1)):
        calls.attention(scale=scale)
    calls.attention(key_lengths=((3, 12), (3, 99)))
    calls.attention(key_lengths=np.array([[3, 2**40], [3, -(2**40)]]))
    calls.attention(config=BACKEND.default_config(None))  # type: ignore[arg-type]  # it depends on nothing
    per_head = replace(calls.SPEC, top_k=(1, 2, 0, 1))
    calls.attention(spec=per_head)
    calls.pool(plan=moc.plan(per_head))  # top_k speaks of query heads, and there are none here


def test_nan_and_infinity_are_data(calls: Any) -> None:
    q, k = calls.Q.copy(), calls.K.copy()
    q[0, 5, 1, 2], k[1, 9, 0, 0] = np.inf, np.nan
    with np.errstate(all="ignore"):
        calls.attention(q=q, k=k)
