"""The properties that need no oracle of their own: two runs of an implementation that must agree, or be ordered.

Each takes (implementation, problem) and raises `MismatchError`. Runs that must agree bit for bit ask for
deterministic mode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sparsemoc.spec.anchors import First, Window
from sparsemoc.testing import checks, oracle, tolerance
from sparsemoc.testing.checks import expect, same_bits
from sparsemoc.testing.implementations import Forward, Implementation
from sparsemoc.testing.oracle_rules import Bools, Routes
from sparsemoc.testing.problems import STRIDES, Problem
from sparsemoc.testing.sample import Floats

#: The kinds a problem may hold.
KINDS = ("video", "text", "audio")


def _all_decidable(problem: Problem) -> bool:
    counts = [tolerance.decidable(sample) for sample in problem.samples()]
    return all(found == total for found, total in counts)


def _expect_same(what: str, got: Forward, wanted: Forward) -> None:
    expect(np.array_equal(got.selected, wanted.selected), f"{what}: the selections differ")
    expect(same_bits(got.out, wanted.out), f"{what}: out differs")
    expect(same_bits(got.lse, wanted.lse), f"{what}: lse differs")


def check_determinism(implementation: Implementation, problem: Problem) -> None:
    """The same call gives the same bits, forward and backward."""
    problem = problem.but(deterministic=True)
    _expect_same("a second run", implementation.forward(problem), implementation.forward(problem))
    first, second = implementation.backward(problem), implementation.backward(problem)
    for name, x, y in zip(("dq", "dk", "dv"), first, second, strict=True):
        expect(same_bits(x, y), f"a second run: {name} differs")


def _alone(problem: Problem, number: int) -> Problem:
    """Return sample `number` as a problem of its own, with the same global batch number."""
    arrays = problem.arrays
    lengths = problem.key_lengths
    common = {
        "key_lengths": None if lengths is None else (lengths[number],),
        "batch_start": problem.batch_start + number,
        "batch": 1,
    }
    if not problem.packed:
        one = slice(number, number + 1)
        cut = {name: getattr(arrays, name)[one] for name in ("q", "k", "v", "d_out", "d_lse")}
        return problem.but(**common).with_arrays(**cut)
    start = sum(stream.tokens for stream in problem.streams[:number])
    one = slice(start, start + problem.streams[number].tokens)
    cut = {name: getattr(arrays, name)[one] for name in ("q", "k", "v", "d_out")}
    return problem.but(**common, streams=(problem.streams[number],)).with_arrays(**cut, d_lse=arrays.d_lse[:, one])


def check_batch(implementation: Implementation, problem: Problem) -> None:
    """Each sample of a batch, or of a packed batch, gives alone the bits that it gives in company."""
    problem = problem.but(deterministic=True)
    got, grads = implementation.forward(problem), implementation.backward(problem)
    outs, lses = checks.pieces(problem, got.out, 0), checks.pieces(problem, got.lse, 1)
    rows = checks.selections(problem, got.selected)
    cut = [checks.pieces(problem, grad, 0) for grad in grads]
    for number in range(len(outs)):
        alone = _alone(problem, number)
        own, own_grads = implementation.forward(alone), implementation.backward(alone)
        lead = () if problem.packed else (0,)
        chosen = _wider(own.selected[0], rows[number].shape[2])
        expect(np.array_equal(chosen, rows[number]), f"sample {number} alone selects other chunks")
        expect(same_bits(own.out[lead], outs[number]), f"sample {number} alone: out differs")
        expect(same_bits(own.lse[lead], lses[number]), f"sample {number} alone: lse differs")
        for name, one, parts in zip(("dq", "dk", "dv"), own_grads, cut, strict=True):
            expect(same_bits(one[lead], parts[number]), f"sample {number} alone: {name} differs")


def _wider(selected: Routes, slots: int) -> Routes:
    """Pad with -1: alone, a packed sample may have fewer chunks and so fewer slots."""
    return np.pad(selected, ((0, 0), (0, 0), (0, slots - selected.shape[2])), constant_values=-1)


def check_batch_order(implementation: Implementation, problem: Problem) -> None:
    """Reversing the batch reverses the results, bit for bit. Dropout counts by batch row and stays out."""
    problem = problem.but(deterministic=True, training=False, seed=None)
    if problem.packed:
        return
    arrays, lengths = problem.arrays, problem.key_lengths
    turned = problem.but(key_lengths=None if lengths is None else lengths[::-1]).with_arrays(
        **{name: getattr(arrays, name)[::-1] for name in ("q", "k", "v", "d_out", "d_lse")}
    )
    got, wanted = implementation.forward(turned), implementation.forward(problem)
    _expect_same(
        "the batch reversed", replace(got, out=got.out[::-1], lse=got.lse[::-1], selected=got.selected[::-1]), wanted
    )
    for name, x, y in zip(
        ("dq", "dk", "dv"), implementation.backward(turned), implementation.backward(problem), strict=True
    ):
        expect(same_bits(x[::-1], y), f"the batch reversed: {name} differs")


def check_packing(implementation: Implementation, problem: Problem) -> None:
    """A packed sample gives what it gives as a batch of one."""
    if not problem.packed:
        return
    for number in range(len(problem.streams)):
        packed = _alone(problem, number)
        arrays = packed.arrays
        lifted = {name: getattr(arrays, name)[None] for name in ("q", "k", "v", "d_out", "d_lse")}
        single = packed.but(packed=False).with_arrays(**lifted)
        if packed.training or _all_decidable(packed):
            got, wanted = implementation.forward(packed).selected, implementation.forward(single).selected
            expect(np.array_equal(got, wanted), f"sample {number}: packed, the selection differs")
        checks.check_forward(implementation, single)


def check_presentation(implementation: Implementation, problem: Problem) -> None:
    """Axes and strides change nothing: selection, out and gradients stay right however the arrays lie."""
    # The arrays first: what "broadcast" shows is made of one head.
    plain = problem.with_arrays().but(axes="bshd", strides="plain")
    wanted, decidable = implementation.forward(plain), _all_decidable(problem)
    for number, strides in enumerate(STRIDES):
        shown = plain.but(axes=("bhsd", "bshd")[number % 2], strides=strides)
        got = implementation.forward(shown)
        if decidable:
            expect(np.array_equal(got.selected, wanted.selected), f"{strides} strides change the selection")
        checks.check_forward(implementation, shown)
        checks.check_backward(implementation, shown)


def check_full(implementation: Implementation, problem: Problem) -> None:
    """With as many routes as chunks, everything routable and the own chunk anchored: full (causal) attention."""
    changes: dict[str, Any] = {
        "top_k": 2**10,
        "anchors": ("chunk",),
        "routable": KINDS,
        "dense_queries": (),
        "dropout": None,
    }
    problem = problem.but(spec=replace(problem.spec, **changes), training=False, seed=None)
    got = implementation.forward(problem)
    wanted = []
    for sample in problem.samples():
        own = oracle.tokens_of(sample.spec, sample.stream).chunk
        query = np.arange(sample.q_start, sample.q_start + sample.q_tokens)
        key = np.arange(len(own))
        mask = np.ones((len(query), len(key)), bool)
        if problem.spec.causal == "chunk":
            mask = own[key] <= own[query][:, None]
        elif problem.spec.causal == "token":
            mask = key <= query[:, None]
        mask = mask & sample.valid & sample.valid_queries[:, None]
        wanted.append(np.broadcast_to(mask, (sample.heads, *mask.shape)))
    checks.check_output(problem, wanted, got.out, got.lse)


def check_more_anchors(implementation: Implementation, problem: Problem) -> None:
    """Adding an anchor never takes a key away from a query."""
    problem = problem.but(training=False, seed=None)
    choices = ("text", "shot", "segment", "chunk", First(3), First(1, "frame", "shot"), Window(2), Window(1, "chunk"))
    extra = choices[problem.data_seed % len(choices)]
    more = problem.but(spec=replace(problem.spec, anchors=(*problem.spec.anchors, extra)))
    if _all_decidable(problem) and _all_decidable(more):
        lost = implementation.forward(problem).mask & ~implementation.forward(more).mask
        expect(not lost.any(), f"adding the anchor {extra} takes keys away at {np.argwhere(lost)[:3].tolist()}")


def check_empty(implementation: Implementation, problem: Problem) -> None:
    """Without anchors, routes and dense queries every row is empty: out 0, lse -inf, gradients 0."""
    spec = replace(problem.spec, anchors=(), top_k=0, dense_queries=(), dropout=None)
    problem = problem.but(spec=spec, training=False, seed=None)
    got = implementation.forward(problem)
    expect((got.out == 0).all(), "out of an empty row is not 0")
    expect((got.lse == -np.inf).all(), "lse of an empty row is not -inf")
    expect(not got.mask.any(), "the mask of an empty row is not empty")
    for name, grad in zip(("dq", "dk", "dv"), implementation.backward(problem), strict=True):
        expect((grad == 0).all(), f"{name} of empty rows is not 0")


def _slots(selected: Routes, first: int) -> Routes:
    """Return every second route, from the first or the second on, packed to the front again."""
    part = np.full_like(selected, -1)
    half = selected[..., first::2]
    part[..., : half.shape[-1]] = half
    return part


def check_merge(implementation: Implementation, problem: Problem) -> None:
    """Attention over two halves of the routes, merged by lse, is attention over all of them."""
    spec = replace(problem.spec, anchors=(), dense_queries=())
    problem = problem.but(spec=spec)
    selected = implementation.forward(problem).selected
    halves = [implementation.attend(problem, _slots(selected, first)) for first in (0, 1)]
    for first, (out, lse) in enumerate(halves):
        checks.check_output(problem, checks.oracle_masks(problem, _slots(selected, first)), out, lse)
    outs = [out.astype(np.float64) for out, _ in halves]
    lses = [lse.astype(np.float64) for _, lse in halves]
    with np.errstate(invalid="ignore"):
        total = np.logaddexp(*lses)
        shares = [np.where(np.isneginf(lse), 0, np.exp(lse - total)) for lse in lses]
    merged = sum(np.swapaxes(share, -2, -1)[..., None] * out for share, out in zip(shares, outs, strict=True))
    out = np.asarray(merged).astype(problem.arrays.v.dtype)
    checks.check_output(
        problem, checks.oracle_masks(problem, selected), out, total.astype(halves[0][1].dtype), slack=3.0
    )


def _spoil(x: Floats, places: Bools) -> Floats:
    spoiled = x.copy()
    spoiled[places] = np.nan
    return spoiled


def check_outside(implementation: Implementation, problem: Problem) -> None:
    """A key set to NaN changes no row that does not see it, bit for bit, under the same selection."""
    problem = problem.but(deterministic=True)
    got = implementation.forward(problem)
    key = problem.data_seed % problem.tokens
    arrays = problem.arrays
    places = np.zeros(arrays.k.shape[:-1], bool)
    places[..., key, :] = True
    spoiled = problem.with_arrays(k=_spoil(arrays.k, places), v=_spoil(arrays.v, places))
    before = implementation.attend(problem, got.selected)
    after = implementation.attend(spoiled, got.selected)
    blind = ~got.mask[..., key]
    if problem.packed:
        blind = blind[0]
    rows = [(np.swapaxes(out, -3, -2)[blind], lse[blind]) for out, lse in (before, after)]
    expect(same_bits(rows[0][0], rows[1][0]), f"key {key} changes out of queries that do not see it")
    expect(same_bits(rows[0][1], rows[1][1]), f"key {key} changes lse of queries that do not see it")


def check_padding(implementation: Implementation, problem: Problem) -> None:
    """What stands in padding, NaN too, changes no bit anywhere; padding queries give 0, -inf, -1 and no gradient."""
    problem = problem.but(deterministic=True)
    valid = [sample.valid for sample in problem.samples()]
    keys = np.concatenate(valid) if problem.packed else np.stack(valid)
    first = 0 if problem.packed else problem.first_query
    queries = keys[..., first : first + problem.queries]
    arrays = problem.arrays
    d_lse = np.where(queries[..., None, :], arrays.d_lse, np.nan).astype(arrays.d_lse.dtype)
    spoiled = problem.with_arrays(
        q=_spoil(arrays.q, ~queries),
        k=_spoil(arrays.k, ~keys),
        v=_spoil(arrays.v, ~keys),
        d_out=_spoil(arrays.d_out, ~queries),
        d_lse=d_lse,
    )
    got = implementation.forward(spoiled)
    _expect_same("NaN in padding", got, implementation.forward(problem))
    expect((got.out[~queries] == 0).all(), "out of a padding query is not 0")
    expect((got.lse.swapaxes(-2, -1)[~queries] == -np.inf).all(), "lse of a padding query is not -inf")
    names, places = ("dq", "dk", "dv"), (queries, keys, keys)
    pairs = zip(implementation.backward(spoiled), implementation.backward(problem), strict=True)
    for name, (x, y), inside in zip(names, pairs, places, strict=True):
        expect(same_bits(x, y), f"NaN in padding changes {name}")
        expect((x[~inside] == 0).all(), f"{name} of padding is not 0")


def _of_heads(problem: Problem, first: int, stop: int) -> Problem:
    """Return the key heads first ... stop - 1 with their query heads, as a problem of its own."""
    arrays, group, top_k = problem.arrays, problem.heads // problem.kv_heads, problem.spec.top_k
    queries, keys = slice(first * group, stop * group), slice(first, stop)
    own = top_k if isinstance(top_k, int) else top_k[queries]
    return problem.but(
        spec=replace(problem.spec, top_k=own),
        heads=(stop - first) * group,
        kv_heads=stop - first,
        head_start=problem.head_start + first * group,
    ).with_arrays(
        q=arrays.q[..., queries, :],
        k=arrays.k[..., keys, :],
        v=arrays.v[..., keys, :],
        d_out=arrays.d_out[..., queries, :],
        d_lse=arrays.d_lse[..., queries, :],
    )


def check_heads(implementation: Implementation, problem: Problem) -> None:
    """Heads spread over machines give what they give together; head_start keeps dropout the same."""
    if not _all_decidable(problem):
        return
    wanted, group = implementation.forward(problem).selected, problem.heads // problem.kv_heads
    for head in range(problem.kv_heads):
        part = _of_heads(problem, head, head + 1)
        got = implementation.forward(part)
        own = wanted[:, head * group : (head + 1) * group]
        slots = got.selected.shape[-1]
        expect((own[..., slots:] == -1).all(), f"key head {head} alone has too few slots")
        expect(np.array_equal(got.selected, own[..., :slots]), f"key head {head} alone selects other chunks")
        checks.check_forward(implementation, part)
