"""`sdpa_like` does what scaled_dot_product_attention is asked, as the oracle routes it, or refuses."""

from __future__ import annotations

import doctest
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import oracle

torch = pytest.importorskip("torch", reason="the function is torch's")
moc_torch: Any = import_module("sparsemoc.torch")

sdpa = torch.nn.functional.scaled_dot_product_attention
STREAM = moc.Stream((moc.Segment("text", 5), moc.Segment("video", 24)))
SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=2, anchors=("text", "chunk"))
TOKENWISE = replace(SPEC, causal="token")
ALL: dict[str, Any] = {"top_k": 100, "anchors": ("text", "chunk")}


def qkv(heads: int = 4, kv_heads: int = 4, queries: int = 29, keys: int = 29) -> list[Any]:
    shapes = ((2, heads, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 5))
    return [torch.from_numpy(np.random.default_rng(shape).standard_normal(shape)) for shape in shapes]


def expected(arrays: list[Any], spec: moc.RoutingSpec = SPEC, **options: Any) -> Any:
    q, k, v = (x.numpy() for x in arrays)
    return torch.from_numpy(oracle.run(q, k, v, spec, axes="bhsd", **options).out)


def test_the_oracle() -> None:
    arrays = qkv()
    attend = moc_torch.sdpa_like(SPEC, stream=STREAM)
    torch.testing.assert_close(attend(*arrays), expected(arrays, stream=STREAM))
    torch.testing.assert_close(attend(*arrays, None, 0.0, False, 0.5), expected(arrays, stream=STREAM, scale=0.5))
    other = moc.Stream((moc.Segment("video", 29),))
    torch.testing.assert_close(attend(*arrays, stream=other), expected(arrays, stream=other))
    torch.testing.assert_close(moc_torch.sdpa_like(SPEC)(*arrays), expected(arrays, stream=other))
    lengths = [[5, 11], [3, 24]]
    found = attend(*arrays, key_lengths=lengths)
    torch.testing.assert_close(found, expected(arrays, stream=STREAM, key_lengths=np.array(lengths)))


def test_everything_selected_is_sdpa() -> None:
    arrays = qkv()
    found = moc_torch.sdpa_like(replace(SPEC, **ALL), stream=STREAM)(*arrays, scale=0.3)
    torch.testing.assert_close(found, sdpa(*arrays, scale=0.3))
    found = moc_torch.sdpa_like(replace(TOKENWISE, **ALL))(*arrays, is_causal=True)
    torch.testing.assert_close(found, sdpa(*arrays, is_causal=True))
    grouped = qkv(kv_heads=2)
    found = moc_torch.sdpa_like(replace(SPEC, **ALL))(*grouped, enable_gqa=True)
    torch.testing.assert_close(found, sdpa(*grouped, enable_gqa=True))


def test_one_head_of_rank_3() -> None:
    arrays = [x[:, 0] for x in qkv()]
    found = moc_torch.sdpa_like(SPEC)(*arrays)
    wanted = expected([x[:, None] for x in arrays], stream=moc.Stream((moc.Segment("video", 29),)))
    assert found.shape == (2, 29, 5)
    torch.testing.assert_close(found, wanted[:, 0])


def test_the_last_queries_of_a_cache() -> None:
    arrays = qkv(queries=3)
    found = moc_torch.sdpa_like(TOKENWISE, stream=STREAM)(*arrays)
    torch.testing.assert_close(found, expected(arrays, TOKENWISE, stream=STREAM))


def test_route_dropout_is_asked_for() -> None:
    spec = replace(SPEC, dropout=moc.RouteDropout(off=1.0, into=1.0))
    arrays, attend = qkv(), moc_torch.sdpa_like(spec, stream=STREAM)
    torch.testing.assert_close(attend(*arrays), expected(arrays, stream=STREAM))
    given = attend(*arrays, training=True, seed=7)
    torch.testing.assert_close(given, expected(arrays, spec, stream=STREAM, training=True, seed=7))
    torch.manual_seed(2)
    drawn = attend(*arrays, training=True)
    torch.manual_seed(2)
    seed = int(torch.randint(0, 2**62, ()))
    assert torch.equal(drawn, attend(*arrays, training=True, seed=seed))
    assert not torch.equal(drawn, attend(*arrays, training=True))


def test_options_reach_the_backend() -> None:
    arrays = qkv()
    with pytest.raises(moc.UnsupportedError, match=r"backend must be .* got 'nowhere'"):
        moc_torch.sdpa_like(SPEC, backend="nowhere")(*arrays)
    with pytest.raises(moc.SpecError, match="options must be an Options value"):
        moc_torch.sdpa_like(SPEC, options="ieee")(*arrays)
    with pytest.raises(moc.SpecError, match="config must be a"):
        moc_torch.sdpa_like(SPEC, backend="numba", config=3)(*arrays)
    with pytest.raises(moc.SpecError, match="deterministic must be True, False or None"):
        moc_torch.sdpa_like(SPEC, deterministic=1)(*arrays)


MASK = torch.ones(29, 29, dtype=torch.bool)


@pytest.mark.parametrize(
    ("spec", "arrays", "options", "kind", "message"),
    [
        (
            SPEC,
            qkv(),
            {"attn_mask": MASK},
            moc.UnsupportedError,
            "sdpa_like: attn_mask must be None, got torch.bool (29, 29). What a query sees is the spec's to say. "
            'Hint: for padding key_lengths=; for a causal mask RoutingSpec(causal="token").',
        ),
        (SPEC, qkv(), {"attn_mask": 3}, moc.UnsupportedError, "sdpa_like: attn_mask must be None, got 3 (int). What a"),
        (
            SPEC,
            qkv(),
            {"dropout_p": 0.1},
            moc.UnsupportedError,
            "sdpa_like: dropout_p must be 0, got 0.1: single weights are not dropped. "
            "Hint: RoutingSpec(dropout=RouteDropout(off=0.5)) drops routes, with training=True.",
        ),
        (
            replace(SPEC, causal="chunk"),
            qkv(),
            {"is_causal": True},
            moc.SpecError,
            'sdpa_like: is_causal=True needs a spec with causal="token", got causal="chunk". '
            'Hint: dataclasses.replace(spec, causal="token").',
        ),
        (
            TOKENWISE,
            qkv(queries=3),
            {"is_causal": True},
            moc.ShapeError,
            "sdpa_like: with is_causal=True query and key must have as many tokens, got 3 and 29. "
            "Hint: without it, queries are the last of the keys, and the spec stays causal.",
        ),
        (
            SPEC,
            qkv(kv_heads=2),
            {},
            moc.ShapeError,
            "sdpa_like: query and key must have as many heads, axis 1, got (2, 4, 29, 8), (2, 2, 29, 8), "
            "(2, 2, 29, 5). Hint: enable_gqa=True.",
        ),
        (
            SPEC,
            [x[0, 0] for x in qkv()],
            {},
            moc.ShapeError,
            "sdpa_like: query, key and value must have rank 4 (batch, heads, tokens, head_dim), or 3 for one head "
            "(batch, tokens, head_dim), got (29, 8), (29, 8), (29, 5). Hint: flatten the leading axes.",
        ),
    ],
)
def test_refused(spec: moc.RoutingSpec, arrays: list[Any], options: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind) as error:
        moc_torch.sdpa_like(spec)(*arrays, **options)
    assert str(error.value).startswith(message)


def test_a_spec_that_is_none() -> None:
    with pytest.raises(moc.SpecError) as error:
        moc_torch.sdpa_like(None)
    assert str(error.value).startswith("sdpa_like: spec must be a RoutingSpec, got None (NoneType). Hint: ")


def test_the_example_runs() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(moc_torch.sdpa_like, globs={})
    assert doctest.DocTestRunner().run(test) == (0, 3)
