"""The rules of scores, routes, dropout and softmax, as loops over tokens and chunks, on every backend.

Queries and keys are multiples of 12, so that sums, means of up to 4 and scores are whole numbers: float32 holds them
exactly, and ties are ties.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sparsemoc as moc

STREAM = moc.Stream(
    (
        moc.Segment("text", 2),
        moc.Segment("video", 8, shot=0),
        moc.Segment("audio", 3),
        moc.Segment("video", 6, shot=1),
    )
)
# ....... 0         1
# ....... 0123456789012345678
CHUNK = " 00 11112222 333 444555".replace(" ", "")  # Chunks(size=4): 6 = 3 + 3
KIND = "  tt vvvvvvvv aaa vvvvvv".replace(" ", "")
TOKENS = range(19)
CHUNKS = range(6)
BATCH, HEADS, KV_HEADS, DIM = 2, 4, 2, 3

pytestmark = pytest.mark.dtype("float64")

Floats = NDArray[np.float64]


def whole_numbers(seed: int, heads: int) -> Floats:
    return 12 * np.random.default_rng(seed).integers(-2, 3, (BATCH, 19, heads, DIM)).astype(np.float64)


Q, K, V = whole_numbers(0, HEADS), whole_numbers(1, KV_HEADS), whole_numbers(2, KV_HEADS)


def keys_of(chunk: int) -> list[int]:
    return [j for j in TOKENS if int(CHUNK[j]) == chunk]


def score(q: Floats, k: Floats, keys: list[int]) -> float:
    """Return <q, mean of the keys>: q (head_dim,), k (tokens, head_dim)."""
    total = 0.0
    for d in range(DIM):
        total += q[d] * sum(k[j, d] for j in keys) / len(keys)
    return total


def best(scores: dict[int, float], top_k: int) -> list[int]:
    """Return the top_k chunks of the highest score, ties to the lower number, ascending."""
    return sorted(sorted(scores, key=lambda chunk: (-scores[chunk], chunk))[:top_k])


def spec_of(**rules: Any) -> moc.RoutingSpec:
    defaults: dict[str, Any] = {"stream": STREAM, "chunks": moc.Chunks(size=4), "anchors": ("chunk",)}
    return moc.RoutingSpec(**defaults | rules)


def chosen(layout: moc.Layout, b: int, h: int, row: int) -> list[int]:
    """Return the chunks of one query; the slots are ascending, then -1."""
    slots = np.asarray(layout.selected)[b, h, row].tolist()
    found = [chunk for chunk in slots if chunk >= 0]
    assert slots == sorted(found) + [-1] * (len(slots) - len(found))
    return found


@pytest.mark.parametrize("top_k", [0, 1, 2, 50, (1, 0, 3, 2)])
@pytest.mark.parametrize("causal", ["none", "chunk", "token"])
def test_each_head_routes_to_its_best_candidates(backend: str, top_k: int | tuple[int, ...], causal: str) -> None:
    layout = moc.route(Q, K, spec_of(top_k=top_k, causal=causal), backend=backend)
    for b in range(BATCH):
        for h in range(HEADS):
            for i in TOKENS:
                scores = {}
                for c in CHUNKS:
                    own = int(CHUNK[i])
                    if KIND[i] != "t" and c != 0 and c != own and (causal == "none" or c < own):
                        scores[c] = score(Q[b, i, h], K[b, :, h // 2], keys_of(c))
                number = top_k if isinstance(top_k, int) else top_k[h]
                assert chosen(layout, b, h, i) == best(scores, number), (b, h, i)
    assert np.asarray(layout.selected).shape[3] == min(50 if top_k == 50 else np.max(top_k), 6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_a_block_routes_by_the_mean_of_the_queries_present(backend: str, size: int) -> None:
    # Queries 4 ... 18; tokens 8 and 9 are padding: the block of 6 ... 9 has two members, that of 2 ... 5 too.
    lengths = np.array([[2, 6, 3, 6]] * BATCH, np.int32)
    valid = [i for i in TOKENS if i not in (8, 9)]
    spec = spec_of(top_k=2, unit=moc.Block(size))
    layout = moc.route(Q[:, 4:], K, spec, key_lengths=lengths, backend=backend)
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(4, 19):
                start = CHUNK.index(CHUNK[i])
                members = [
                    m for m in valid if m >= 4 and CHUNK[m] == CHUNK[i] and (m - start) // size == (i - start) // size
                ]
                scores = {}
                for c in CHUNKS:
                    keys = [j for j in keys_of(c) if j in valid]
                    if i in valid and c != 0 and c != int(CHUNK[i]) and keys:
                        mean = sum(Q[b, m, h] for m in members) / len(members)
                        scores[c] = score(mean, K[b, :, h // 2], keys)
                assert chosen(layout, b, h, i - 4) == best(scores, 2), (b, h, i)


def test_a_nan_score_ranks_first_and_the_lower_chunk_before_the_higher(backend: str) -> None:
    k = K.copy()
    k[:, 9] = k[:, 17] = np.nan  # chunks 2 and 5
    for top_k, expected in ((1, [2]), (2, [2, 5])):
        layout = moc.route(Q[:, 10:13], k, spec_of(top_k=top_k), q_start=10, backend=backend)
        assert all(chosen(layout, b, h, r) == expected for b in range(BATCH) for h in range(HEADS) for r in range(3))


@pytest.mark.parametrize("negative", [1, 2, 4, 5])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_minus_zero_equals_plus_zero(backend: str, negative: int, sign: float) -> None:
    k = np.zeros((1, 19, 1, 1))
    k[0, keys_of(negative)] = -0.0
    layout = moc.route(np.full((1, 3, 1, 1), sign), k, spec_of(top_k=2), q_start=10, backend=backend)
    assert [chosen(layout, 0, 0, r) for r in range(3)] == [[1, 2]] * 3


@pytest.mark.parametrize("scale", [None, 0.01])
@pytest.mark.parametrize("scope", ["all", "past"])
def test_softmax_over_anchors_and_routes_every_key_once(backend: str, scale: float | None, scope: str) -> None:
    # Anchors cut through routed chunks: the window and the first tokens overlap what is routed.
    spec = spec_of(top_k=2, anchors=(moc.window(2), moc.first(4)), dense_queries=("audio",), dense_scope=scope)
    layout = moc.route(Q, K, spec, backend=backend)
    out, lse = moc.attention(Q, K, V, spec, scale=scale, return_lse=True, backend=backend)
    again = moc.attend(Q, K, V, layout, scale=scale, backend=backend)
    mask = layout.dense_mask()
    factor = DIM**-0.5 if scale is None else scale
    pairs = 0
    for b in range(BATCH):
        for h in range(HEADS):
            for i in TOKENS:
                routed = chosen(layout, b, h, i)
                seen = []
                for j in TOKENS:
                    dense = KIND[i] == "a" and (scope == "all" or CHUNK[j] <= CHUNK[i])
                    if dense or abs(i - j) <= 2 or j < 4 or int(CHUNK[j]) in routed:
                        seen.append(j)
                pairs += len(seen)
                assert np.flatnonzero(mask[b, h, i]).tolist() == seen
                logits = [factor * float(Q[b, i, h] @ K[b, j, h // 2]) for j in seen]
                top = max(logits)
                weights = [math.exp(logit - top) for logit in logits]
                expected = sum(w * V[b, j, h // 2] for w, j in zip(weights, seen, strict=True)) / sum(weights)
                np.testing.assert_allclose(out[b, i, h], expected, rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(lse[b, h, i], top + math.log(sum(weights)), rtol=1e-12)
                np.testing.assert_allclose(again[b, i, h], out[b, i, h], rtol=1e-12, atol=1e-12)
    assert layout.pairs() == pairs
    assert layout.density() == pytest.approx(pairs / (BATCH * HEADS * 19 * 19))


def test_a_query_that_sees_no_key_has_out_zero_lse_minus_infinity_and_no_gradient(backend: str) -> None:
    spec = spec_of(top_k=0, anchors=(moc.window(0, "frame"),), dense_queries=())
    out, lse = moc.attention(Q, K, V, spec, return_lse=True, backend=backend)
    assert not np.any(out)
    assert np.all(np.isneginf(lse))
    for grad in moc.attention_grads(Q, K, V, spec, np.ones_like(out), d_lse=np.ones_like(lse), backend=backend):
        assert not np.any(grad)


def test_padding_is_no_key_no_query_and_in_no_total(backend: str) -> None:
    spec = spec_of(top_k=6, routable=("text", "video", "audio"))  # every query sees every valid key
    lengths = np.array([[2, 5, 0, 6], [1, 99, 3, -4]], np.int32)
    valid = [[0, 1, *range(2, 7), *range(13, 19)], [0, *range(2, 10), *range(10, 13)]]
    k, v = K.copy(), V.copy()
    for b in range(BATCH):
        for j in TOKENS:
            if j not in valid[b]:
                k[b, j] = v[b, j] = np.nan
    out, lse, layout = moc.attention(
        Q, k, v, spec, key_lengths=lengths, return_lse=True, return_layout=True, backend=backend
    )
    for b in range(BATCH):
        for h in range(HEADS):
            for i in TOKENS:
                if i not in valid[b]:
                    assert not np.any(out[b, i, h])
                    assert lse[b, h, i] == -np.inf
                    assert chosen(layout, b, h, i) == []
                    continue
                weights = [math.exp(DIM**-0.5 * float(Q[b, i, h] @ K[b, j, h // 2]) - lse[b, h, i]) for j in valid[b]]
                assert sum(weights) == pytest.approx(1)
                expected = sum(w * V[b, j, h // 2] for w, j in zip(weights, valid[b], strict=True))
                np.testing.assert_allclose(out[b, i, h], expected, rtol=1e-9, atol=1e-9)
    assert layout.pairs() == HEADS * sum(len(tokens) ** 2 for tokens in valid)


def test_by_default_the_queries_are_the_last_of_the_stream(backend: str) -> None:
    spec = spec_of(top_k=2, causal="chunk")
    whole = moc.attention(Q, K, V, spec, backend=backend)
    np.testing.assert_allclose(moc.attention(Q[:, 14:], K, V, spec, backend=backend), whole[:, 14:])
    np.testing.assert_allclose(moc.attention(Q[:, 5:9], K, V, spec, q_start=5, backend=backend), whole[:, 5:9])


def philox_words(counter: list[int], seed: int) -> list[int]:
    """Philox4x32-10 in plain numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed % 2**32, seed // 2**32 % 2**32
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def poisson_below(mean: float, t: int) -> float:
    return sum(math.exp(-mean) * mean**n / math.factorial(n) for n in range(t + 1))


def dropped_and_added(
    routes: list[int], others: list[int], place: list[int], seed: int, dropout: moc.RouteDropout
) -> list[int]:
    words = philox_words([*place, 0], seed)
    d = (words[0] * math.floor(dropout.off * 2**16) * len(routes)) >> 48
    m = sum(words[1] >= math.floor(2**32 * poisson_below(dropout.into, t)) for t in range(dropout.into_max))
    own_word = {c: philox_words([*place, 1 + c // 4], seed)[c % 4] for c in CHUNKS}
    kept = sorted(routes, key=lambda c: (own_word[c], c))[d:]
    added = sorted(others, key=lambda c: (own_word[c], c))[:m]
    return sorted(kept + added)


@pytest.mark.parametrize(("off", "into", "into_max"), [(1.0, 0.0, 0), (0.0, 1.5, 3), (0.7, 2.0, 2), (1.0, 50.0, 7)])
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("seed", [5, -3, 2**40 + 1])
def test_route_dropout(backend: str, off: float, into: float, into_max: int, size: int | None, seed: int) -> None:
    dropout = moc.RouteDropout(off, into, into_max)
    spec = spec_of(top_k=3, dropout=dropout, unit="token" if size is None else moc.Block(size))
    plain = moc.route(Q[:, 5:], K, spec, backend=backend)
    layout = moc.route(Q[:, 5:], K, spec, training=True, seed=seed, batch_start=7, head_start=100, backend=backend)
    assert np.asarray(layout.selected).shape[3] == 3 + into_max
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(5, 19):
                start = CHUNK.index(CHUNK[i])
                first = i if size is None else start + (i - start) // size * size  # it may lie before the range
                routes = chosen(plain, b, h, i - 5)
                others = [c for c in CHUNKS if c not in (0, int(CHUNK[i]), *routes)]
                expected = dropped_and_added(routes, others, [7 + b, 100 + h, first], seed, dropout)
                assert chosen(layout, b, h, i - 5) == expected, (b, h, i)


def test_route_dropout_is_for_training_alone_and_needs_a_seed(backend: str) -> None:
    spec = spec_of(top_k=3, dropout=moc.RouteDropout(off=1.0, into=2.0))
    without = moc.route(Q, K, spec_of(top_k=3), backend=backend)
    layout = moc.route(Q, K, spec, seed=3, backend=backend)
    np.testing.assert_array_equal(np.asarray(layout.selected)[..., :3], np.asarray(without.selected))
    with pytest.raises(moc.SpecError, match="seed"):
        moc.route(Q, K, spec, training=True, backend=backend)


def test_packed_samples_route_among_their_own_chunks(backend: str) -> None:
    short = moc.Stream((moc.Segment("video", 8),))
    spec = spec_of(stream=None, top_k=2)
    packed = moc.route(
        np.concatenate([Q[0], Q[1, :8]]), np.concatenate([K[0], K[1, :8]]), spec, stream=(STREAM, short),
        backend=backend,
    )  # fmt: skip
    parts = [
        moc.route(Q[:1], K[:1], spec, stream=STREAM, backend=backend),
        moc.route(Q[1:, :8], K[1:, :8], spec, stream=short, backend=backend),
    ]
    mask = np.asarray(packed.dense_mask())
    assert not mask[:, :, :19, 19:].any()
    assert not mask[:, :, 19:, :19].any()
    for h in range(HEADS):
        for i in range(27):
            part, row = (parts[0], i) if i < 19 else (parts[1], i - 19)
            assert chosen(packed, 0, h, i) == chosen(part, 0, h, row)
