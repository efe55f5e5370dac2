"""Anchor engines: results beside those of our kernel, and refusals with a reason."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparsemoc.backends.planning.geometry import geometry
from sparsemoc.backends.protocol import Options
from sparsemoc.backends.triton import providers
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream
from sparsemoc.testing.problems import Problem
from tests.backends import attention_cases as cases
from tests.backends.triton import test_forward as forward

STREAM = Stream.multishot(shots=2, frames=4, height=2, width=4, caption=3, prompt=5)


def problem(**changes: Any) -> Problem:
    spec = RoutingSpec(chunks=Chunks(size=16), top_k=1, anchors=("text", "shot"))
    fields = {"heads": 2, "kv_heads": 1, "head_dim": 8, "v_head_dim": 8, "batch": 2}
    return Problem(spec=spec, streams=(STREAM,), **fields | changes)


class _Counting(providers.Sdpa):
    least_pairs = 200
    calls = 0

    def attend(self, q: Any, k: Any, v: Any, scale: float) -> tuple[Any, Any]:
        self.calls += 1
        return super().attend(q, k, v, scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sdpa_takes_the_large_rectangles(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _Counting()
    monkeypatch.setitem(providers.PROVIDERS, "sdpa", engine)
    forward.check(problem(dtype=dtype), options=Options(anchors="sdpa"))
    assert engine.calls >= 2


def test_sdpa_leaves_what_causality_cuts_to_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _Counting()
    monkeypatch.setitem(providers.PROVIDERS, "sdpa", engine)
    one = problem()
    forward.check(one.but(spec=replace(one.spec, causal="token")), options=Options(anchors="sdpa"))


def test_auto_and_own_are_our_kernel() -> None:
    call = cases.call_of(problem(), "torch")
    for name in ("auto", "own"):
        named = replace(call, options=Options(anchors=name))
        tables = geometry(call.plan, False)
        assert providers.refuses(named, tables) is None
        assert providers.chosen(named, tables, False) is None


@pytest.mark.parametrize(
    ("changes", "padded", "word"),
    [
        ({"options": Options(anchors="other")}, False, "other"),
        ({}, True, "key_lengths"),
        ({"v_head_dim": 4}, False, "8 and 4"),
        ({"device": "cuda"}, False, "float32"),
        ({"device": "cuda", "dtype": "bfloat16", "head_dim": 12, "v_head_dim": 12}, False, "12"),
        ({"device": "cuda", "dtype": "bfloat16", "deterministic": True}, False, "deterministic"),
    ],
)
def test_refusals_say_why(changes: dict[str, Any], padded: bool, word: str) -> None:
    call = replace(cases.call_of(problem(), "torch", Options(anchors="sdpa")), **changes)
    tables = geometry(call.plan, padded)
    assert word in str(providers.refuses(call, tables, padded))
    with pytest.raises(UnsupportedError, match=word):
        providers.chosen(call, tables, padded)


def test_lse_is_the_natural_log_of_the_sum() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (torch.from_numpy(rng.standard_normal((1, 2, n, 8)).astype(np.float32)) for n in (5, 7, 7))
    out, lse = providers.Sdpa().attend(q, k, v, 0.3)
    logits = q @ k.transpose(2, 3) * 0.3
    torch.testing.assert_close(lse, torch.logsumexp(logits, 3))
    torch.testing.assert_close(out, torch.softmax(logits, 3) @ v)


class _Package:
    """FlashAttention's function over torch's own kernel: tokens before heads, and a third result nobody needs."""

    @staticmethod
    def flash_attn_func(q: Any, k: Any, v: Any, *, softmax_scale: float, return_attn_probs: bool) -> tuple[Any, ...]:
        assert return_attn_probs
        out, lse = providers.Sdpa().attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale)
        return out.transpose(1, 2), lse, None


def test_flash_attn_is_given_tokens_before_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers.FlashAttention, "_package", lambda self: "flash_attn")
    monkeypatch.setattr(importlib, "import_module", lambda name: _Package)
    q, k, v = (torch.randn(1, heads, tokens, 8) for heads, tokens in ((4, 5), (2, 7), (2, 7)))
    found, wanted = (engine.attend(q, k, v, 0.3) for engine in (providers.FlashAttention(), providers.Sdpa()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("engine", "changes", "reason"),
    [
        ("cudnn", {"device": "cpu"}, "runs on cuda, not cpu"),
        ("cudnn", {"dtype": "float32"}, "takes float16 and bfloat16, not float32"),
        ("cudnn", {}, "takes as many key heads as query heads, not 1 and 2"),
        ("flash_attn", {"head_dim": 12, "v_head_dim": 12}, "takes multiples of 8 as head_dim, not 12"),
        ("flash_attn", {"v_head_dim": 16}, "takes one head_dim for keys and values, not 8 and 16"),
        ("flash_attn", {"deterministic": True}, "splits keys by the size of the batch"),
        ("flash_attn", {}, "needs the package flash-attn"),
    ],
)
def test_a_dense_kernel_refuses_what_it_cannot(
    engine: str, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(providers.FlashAttention, "_package", lambda self: None)
    call = replace(cases.call_of(problem(), "torch"), **{"device": "cuda", "dtype": "float16", **changes})
    found = providers.PROVIDERS[engine].refuses(call)
    assert found is not None
    assert reason in found


def test_what_cudnn_can_do_it_does_not_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    call = replace(cases.call_of(problem(), "torch"), device="cuda", dtype="bfloat16", kv_heads=2)
    assert providers.PROVIDERS["cudnn"].refuses(call) is None
