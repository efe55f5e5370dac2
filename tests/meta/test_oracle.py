"""The oracle against values that a reader can check by eye, against plain loops, and against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.testing import oracle, oracle_random
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.sample import Floats, Sample
from sparsemoc.testing.strategies import problems

# Tokens 0 1 | 2 | 3 4, 5 6 | 7 | 8 9 10 | 11 12; the grid has the frames {3, 4} and {5, 6}.
STREAM = Stream(
    (
        Segment("text", 2),
        Segment("text", 1, shot=4),
        Segment("video", shot=4, grid=(2, 1, 2)),
        Segment("text", 1, shot=0),
        Segment("video", 3, shot=0),
        Segment("audio", 2),
    )
)
# Chunks 01 | 2 | 34 | 56 | 7 | 89 | 10 | 11 12.
CHUNKS = Chunks(size=2)

ANCHORS = [
    ("text", 5, {0, 1, 2, 7}),
    ("caption", 0, {0, 1}),
    ("caption", 2, {0, 1, 2}),
    ("caption", 4, {0, 1, 2}),
    ("caption", 9, {0, 1, 7}),
    ("caption", 12, {0, 1}),
    ("shot", 1, {0, 1}),
    ("shot", 4, {2, 3, 4, 5, 6}),
    ("shot", 7, {7, 8, 9, 10}),
    ("shot", 11, {11, 12}),
    ("segment", 2, {2}),
    ("segment", 5, {3, 4, 5, 6}),
    ("frame", 4, {3, 4}),
    ("frame", 6, {5, 6}),
    ("frame", 9, {8, 9, 10}),
    ("chunk", 9, {8, 9}),
    ("chunk", 10, {10}),
    (First(3), 12, {0, 1, 2}),
    (First(2, of="shot"), 0, {2, 3, 7, 8, 11, 12}),
    (First(1, "frame"), 9, {3, 4}),
    (First(9, "frame"), 9, {3, 4, 5, 6}),
    (First(1, "frame", "shot"), 0, {3, 4}),
    (Window(1), 0, {0, 1}),
    (Window(1), 4, {3, 4, 5}),
    (Window(0), 7, {7}),
    (Window(1, "frame"), 4, {3, 4, 5, 6}),
    (Window(1, "frame"), 9, set()),
    (Window(1, "chunk"), 4, {2, 3, 4, 5, 6}),
    (Window(1, "chunk"), 0, {0, 1, 2}),
]


@pytest.mark.parametrize(("anchor", "query", "keys"), ANCHORS)
def test_anchors_by_eye(anchor: str | First | Window, query: int, keys: set[int]) -> None:
    spec = RoutingSpec(chunks=CHUNKS, anchors=(anchor,))
    assert set(np.flatnonzero(oracle.anchor_mask(spec, STREAM)[query]).tolist()) == keys
    late = replace(spec, causal="token")
    kept = np.flatnonzero(oracle.anchor_mask(late, STREAM, q_start=query, q_tokens=1)[0])
    assert set(kept.tolist()) == {key for key in keys if key <= query}


@pytest.mark.parametrize(
    ("chunks", "segment", "lengths"),
    [
        (Chunks(4), Segment("video", 10), (4, 3, 3)),
        (Chunks(4), Segment("video", 9), (3, 3, 3)),
        (Chunks(4, tail="short"), Segment("video", 10), (4, 4, 2)),
        (Chunks(4), Segment("video", 4), (4,)),
        (Chunks(None), Segment("video", 10), (10,)),
        (Chunks(9, align="frame"), Segment("video", grid=(5, 2, 2)), (8, 8, 4)),
        (Chunks(9, align="frame"), Segment("video", grid=(3, 2, 2)), (8, 4)),
        (Chunks(13, align="frame"), Segment("video", grid=(4, 2, 2)), (8, 8)),
        (Chunks(13, align="frame", tail="short"), Segment("video", grid=(4, 2, 2)), (12, 4)),
        (Chunks(3, align="frame"), Segment("video", grid=(2, 1, 5)), (3, 2, 3, 2)),
        (Chunks(4, align="frame", tail="short"), Segment("video", grid=(2, 1, 5)), (4, 1, 4, 1)),
        (Chunks(4, align="frame"), Segment("video", 10), (4, 3, 3)),
    ],
)
def test_chunks_by_eye(chunks: Chunks, segment: Segment, lengths: tuple[int, ...]) -> None:
    spec = RoutingSpec(chunks=chunks)
    assert oracle.chunk_bounds(spec, Stream((segment,))) == tuple(np.cumsum((0, *lengths)).tolist())


def _sample(spec: RoutingSpec, **changes: object) -> Sample:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((STREAM.tokens, heads, 3)) for heads in (2, 1, 1))
    return replace(Sample(spec, STREAM, q, k, v), **changes)  # type: ignore[arg-type]


def _candidates(sample: Sample) -> dict[int, list[int]]:
    """Candidates by the first query of each unit."""
    return {u.queries[0]: np.flatnonzero(c).tolist() for u, c in zip(sample.units, sample.candidates, strict=True)}


def test_candidates_by_eye() -> None:
    spec = RoutingSpec(chunks=CHUNKS, anchors=("text", "chunk"))
    found = _candidates(_sample(spec))
    assert list(found) == [3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert found[3] == [3, 5, 6, 7]
    assert _candidates(_sample(replace(spec, causal="chunk")))[10] == [2, 3, 5]
    assert _candidates(_sample(replace(spec, anchors=("shot",), causal="token")))[11] == [2, 3, 5, 6]
    every = ("text", "video", "audio")
    assert _candidates(_sample(replace(spec, routable=every, anchors=(Window(1),))))[5] == [0, 1, 2, 4, 5, 6, 7]


def test_a_block_leaves_out_a_chunk_only_if_every_member_covers_it() -> None:
    spec = RoutingSpec(chunks=Chunks(None), anchors=(Window(1),), unit=Block(2))
    sample = _sample(spec)
    assert [unit.queries for unit in sample.units] == [(3, 4), (5, 6), (8, 9), (10,), (11, 12)]
    # Token 10 sees 11 but not 12; 11 sees both tokens of the last chunk, 12 too.
    assert _candidates(sample)[10] == [2, 4, 5]
    assert _candidates(sample)[11] == [2, 4]


def test_padding_is_no_key_no_mean_and_no_candidate() -> None:
    sample = _sample(RoutingSpec(chunks=CHUNKS, anchors=(First(4),)), key_lengths=(2, 1, 1, 1, 99, -1))
    assert np.flatnonzero(~sample.valid).tolist() == [4, 5, 6, 11, 12]
    # Chunk 2 holds the tokens 3 and 4: 4 is padding, 3 is anchored, so nothing is left of it.
    assert _candidates(sample)[8] == [5, 6]
    assert np.array_equal(oracle.centroids(sample)[2], sample.k[3])
    assert (oracle.centroids(sample)[3] == 0).all()


def test_ranking_by_eye() -> None:
    scores = np.array([1.0, np.nan, 2.0, -0.0, 0.0, 2.0, np.nan])
    assert oracle.rank(scores, range(7)) == [1, 6, 2, 5, 0, 3, 4]


def test_dense_rows_under_past_scope() -> None:
    spec = RoutingSpec(chunks=CHUNKS, top_k=0, anchors=(First(1, "frame"),), dense_scope="past")
    sample = _sample(spec)
    mask = oracle.mask_of(sample, oracle.select(sample, oracle.scores(sample)))
    assert np.flatnonzero(mask[0, 2]).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(mask[1, 7]).tolist() == list(range(8))


def test_philox_known_answers() -> None:
    """The vectors that Random123 ships for philox4x32-10 (kat_vectors)."""
    ones = 2**32 - 1
    assert oracle_random.philox((0, 0, 0, 0), 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert oracle_random.philox((ones,) * 4, 2**64 - 1) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    counter = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert oracle_random.philox(counter, 0x299F31D0A4093822) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_dropout_at_its_ends() -> None:
    place, candidates = (3, 1, 17), range(9)
    for seed in range(50):
        assert oracle_random.drop(RouteDropout(), [1, 5], candidates, place, seed) == [1, 5]
        kept = oracle_random.drop(RouteDropout(off=1.0), [1, 5], candidates, place, seed)
        assert set(kept) <= {1, 5}
        assert len(kept) in (1, 2)
        more = oracle_random.drop(RouteDropout(into=1e3, into_max=3), [1, 5], candidates, place, seed)
        assert {1, 5} < set(more)
        assert len(more) == 5
        both = oracle_random.drop(RouteDropout(off=1.0, into=1e3, into_max=100), [1, 5], candidates, place, seed)
        assert set(both) == set(kept) | (set(candidates) - {1, 5})


def test_poisson_table_is_the_distribution() -> None:
    wanted = [sum(math.exp(-2.5) * 2.5**n / math.factorial(n) for n in range(t + 1)) for t in range(6)]
    assert oracle_random.poisson_table(2.5, 6) == pytest.approx([p * 2**32 for p in wanted], abs=4)
    assert oracle_random.poisson_table(0.0, 2) == (2**32, 2**32)
    assert oracle_random.poisson_table(1e5, 2) == (0, 0)


def _by_loops(sample: Sample) -> tuple[Floats, Floats]:
    """Out and lse by scalar loops over the mask, in the words of the definition."""
    mask = oracle.mask_of(sample, oracle.select(sample, oracle.scores(sample)))
    q, k, v = (x.astype(np.float64) for x in (sample.q, sample.k, sample.v))
    group = q.shape[1] // k.shape[1]
    out, lse = np.zeros((*q.shape[:2], v.shape[2])), np.full((q.shape[1], len(q)), -np.inf)
    for i in range(len(q)):
        for h in range(q.shape[1]):
            seen = [j for j in range(len(k)) if mask[h, i, j]]
            logits = [sample.factor * math.fsum(q[i, h] * k[j, h // group]) for j in seen]
            if seen:
                top = max(logits)
                total = math.fsum(math.exp(x - top) for x in logits)
                lse[h, i] = top + math.log(total)
                for j, x in zip(seen, logits, strict=True):
                    out[i, h] += math.exp(x - lse[h, i]) * v[j, h // group]
    return out, lse


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(problems(data=("normal", "offset", "integers"), pairs=2**9))
def test_attention_equals_loops(problem: Problem) -> None:
    for sample in problem.samples():
        out, lse, _, _ = oracle.solve(sample)
        wanted_out, wanted_lse = _by_loops(sample)
        np.testing.assert_allclose(out, wanted_out, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(lse, wanted_lse, rtol=1e-9, atol=1e-11)


def _selected_by_definition(sample: Sample, query: int, head: int) -> list[int]:
    """R of one token unit without dropout, key by key."""
    spec, bounds = sample.spec, oracle.chunk_bounds(sample.spec, sample.stream)
    anchored = oracle.anchor_mask(spec, sample.stream, sample.q_start, sample.q_tokens)[query]
    position = sample.q_start + query
    own = next(c for c in range(len(bounds) - 1) if bounds[c] <= position < bounds[c + 1])
    kinds = [segment.kind for segment in sample.stream.segments for _ in range(segment.tokens)]
    ranking = []
    for chunk in range(len(bounds) - 1):
        keys = [j for j in range(bounds[chunk], bounds[chunk + 1]) if sample.valid[j]]
        kind = kinds[bounds[chunk]]
        routable = kind != "text" if spec.routable is None else kind in spec.routable
        if not routable or (spec.causal != "none" and chunk >= own) or all(anchored[j] for j in keys):
            continue
        mean = sum(sample.k[j, sample.key_heads[head]].astype(np.float64) for j in keys) / len(keys)
        ranking.append((-float(sample.q[query, head].astype(np.float64) @ mean), chunk))
    return sorted(chunk for _, chunk in sorted(ranking)[: sample.top_k[head]])


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(problems(data=("normal",), pairs=2**11))
def test_selection_equals_loops(problem: Problem) -> None:
    problem = problem.but(spec=replace(problem.spec, unit="token"), training=False, dtype="float64")
    kinds = problem.spec.dense_queries
    for sample in problem.samples():
        selected = oracle.select(sample, oracle.scores(sample))
        kind_of = [segment.kind for segment in sample.stream.segments for _ in range(segment.tokens)]
        for query in range(sample.q_tokens):
            position = sample.q_start + query
            routed = sample.valid[position] and kind_of[position] not in kinds
            for head in range(sample.heads):
                wanted = _selected_by_definition(sample, query, head) if routed else []
                row = selected[head, query]
                assert row[row >= 0].tolist() == wanted


def test_gradients_by_finite_differences() -> None:
    spec = RoutingSpec(chunks=CHUNKS, top_k=2, anchors=("chunk",), causal="chunk")
    sample = _sample(spec, scale=0.7)
    rng = np.random.default_rng(1)
    selected = oracle.select(sample, oracle.scores(sample))
    mask = oracle.mask_of(sample, selected)
    assert not mask[:, 3].all()
    d_out, d_lse = rng.standard_normal((STREAM.tokens, 2, 3)), rng.standard_normal((2, STREAM.tokens))
    arrays = [sample.q, sample.k, sample.v]

    def loss(changed: list[Floats]) -> float:
        out, lse = oracle.attention(changed[0], changed[1], changed[2], mask, sample.factor)
        finite = np.isfinite(lse)
        return float((out * d_out).sum() + (lse[finite] * d_lse[finite]).sum())

    grads = oracle.gradients(sample.q, sample.k, sample.v, mask, sample.factor, d_out, d_lse)
    for number, grad in enumerate(grads):
        direction = rng.standard_normal(grad.shape)
        step = 1e-6
        values = [
            loss([x + sign * step * direction * (i == number) for i, x in enumerate(arrays)]) for sign in (1.0, -1.0)
        ]
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float((grad * direction).sum()), rel=1e-6)


def test_empty_rows_and_nan() -> None:
    spec = RoutingSpec(chunks=CHUNKS, top_k=0, anchors=(), dense_queries=())
    sample = _sample(spec)
    out, lse, selected, mask = oracle.solve(sample)
    assert not mask.any()
    assert selected.shape == (2, 13, 0)
    assert (out == 0).all()
    assert (lse == -np.inf).all()
    k = sample.k.copy()
    k[5] = np.nan
    routed = _sample(replace(spec, top_k=1), k=k)
    assert (oracle.select(routed, oracle.scores(routed)) == 3).all()


def test_run_takes_batches_packs_and_axes() -> None:
    rng = np.random.default_rng(2)
    spec = RoutingSpec(stream=STREAM, chunks=CHUNKS, top_k=1, anchors=("chunk",))
    q, k, v = (rng.standard_normal((2, 13, heads, 4)) for heads in (4, 2, 2))
    answer = oracle.run(q, k, v, spec)
    assert answer.out.shape == (2, 13, 4, 4)
    assert answer.lse.shape == (2, 4, 13)
    turned = oracle.run(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), spec, axes="bhsd")
    assert np.array_equal(turned.out.swapaxes(1, 2), answer.out)
    flat = [x.reshape(26, -1, 4) for x in (q, k, v)]
    packed = oracle.run(flat[0], flat[1], flat[2], spec, stream=(STREAM, STREAM))
    assert np.array_equal(packed.out.reshape(answer.out.shape), answer.out)
    assert packed.selected.shape == (1, 4, 26, 1)
    last = oracle.run(q[:, 9:], k, v, spec)
    np.testing.assert_allclose(last.out, answer.out[:, 9:], rtol=1e-12)
