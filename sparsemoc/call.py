"""Checks of a call that hold for every backend, on its way from the public functions to one of them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from sparsemoc.backends import Options, Problem, Randomness
from sparsemoc.frameworks import framework_of
from sparsemoc.frameworks.arrays import Arrays
from sparsemoc.spec.checks import whole
from sparsemoc.spec.errors import ShapeError, SpecError, describe
from sparsemoc.spec.host import dtype_name
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.spec.traced import is_traced


def check_queries(arrays: Arrays) -> None:
    """Check q against k: batch, head_dim, and the number of heads."""
    q, k = arrays.of["q"], arrays.of["k"]
    source = f"batch and head_dim come from `q`, whose shape is {arrays.shown(tuple(q.shape))}."
    arrays.expect("k", (q.shape[0], k.shape[1], k.shape[2], q.shape[3]), source)
    if q.shape[2] % k.shape[2]:
        raise ShapeError(
            f"{arrays.function}: `q` must have a multiple of the heads of `k`, got {q.shape[2]} and {k.shape[2]}. "
            "Query head h reads key head h // (H_q / H_kv)."
        )


def check_values(arrays: Arrays) -> None:
    """Check v against k."""
    k, v = arrays.of["k"], arrays.of["v"]
    source = f"All but head_dim come from `k`, whose shape is {arrays.shown(tuple(k.shape))}."
    arrays.expect("v", (*k.shape[:3], v.shape[3]), source)


def make_plan(arrays: Arrays, spec: RoutingSpec, stream: Stream | Sequence[Stream] | None, q_start: int | None) -> Plan:
    """Apply the spec to the lengths of the arrays."""
    function = arrays.function
    if not isinstance(spec, RoutingSpec):
        raise SpecError(
            f"{function}: spec must be a RoutingSpec, got {describe(spec)}. Hint: sparsemoc.load_spec(path)."
        )
    if q_start is not None and arrays.packed:
        raise SpecError(f"{function}: q_start must be left out for packed arrays, got {q_start}. There L_q = L_k.")
    if q_start is not None:
        q_start = whole(q_start, f"{function}: q_start", least=0, hint="It is the stream position of the first query.")
    streams = _streams(arrays, spec, stream)
    if isinstance(streams, Stream):
        _check_tokens(arrays, streams.tokens, q_start, alone=stream is None and spec.stream is None)
    found = plan(spec, streams, q_start=q_start, q_tokens=None if arrays.packed else arrays.of["q"].shape[1])
    check_lengths(arrays, found)
    return found


def _check_tokens(arrays: Arrays, tokens: int, q_start: int | None, *, alone: bool) -> None:
    """Check the token axes against the stream, or against k where k alone gives it: in the caller's own words."""
    function, queries = arrays.function, arrays.of["q"].shape[1]
    whose = "those of `k`" if alone else "those of the stream"
    if queries > tokens:
        hint = "Without a stream the keys are one video segment." if alone else "Queries are a part of the stream."
        raise ShapeError(f"{function}: `q` must have at most {tokens} tokens, {whose}, got {queries}. {hint}")
    keys = arrays.of["k"].shape[1] if "k" in arrays.of else tokens
    if keys != tokens:
        raise ShapeError(f"{function}: `k` must have {tokens} tokens, {whose}, got {keys}. Hint: check the segments.")
    if q_start is not None and q_start + queries > tokens:
        raise SpecError(
            f"{function}: q_start + the tokens of `q` must be at most {tokens}, {whose}, got {q_start} + {queries} = "
            f"{q_start + queries}."
        )


def _streams(arrays: Arrays, spec: RoutingSpec, stream: Stream | Sequence[Stream] | None) -> Stream | Sequence[Stream]:
    """Return what is given, what the spec holds, or one video segment; packed, as a tuple."""
    given = stream if stream is not None else spec.stream
    if given is None:
        if "k" not in arrays.of:
            raise SpecError(
                f"{arrays.function}: stream must be given where `k` is not and the spec has none. "
                'Hint: stream=Stream((Segment("video", tokens),)).'
            )
        given = Stream((Segment("video", arrays.of["k"].shape[1]),))
    if arrays.packed:
        return (given,) if isinstance(given, Stream) else given
    if not isinstance(given, Stream):
        raise ShapeError(
            f"{arrays.function}: stream must be one Stream for rank 4, which the whole batch shares, got "
            f"{describe(given)}. A tuple of streams goes with packed arrays (tokens, heads, head_dim)."
        )
    return given


def check_lengths(arrays: Arrays, found: Plan) -> None:
    """Check the token axes of the arrays against a plan."""
    lengths = {"q": found.q_tokens, "k": found.k_tokens, "v": found.k_tokens}
    for argument, array in arrays.of.items():
        wanted = lengths.get(argument, found.q_tokens)
        if array.shape[1] != wanted:
            what = "streams hold" if len(found.streams) > 1 else "stream holds"
            raise ShapeError(
                f"{arrays.function}: `{argument}` must have {wanted} tokens, got {array.shape[1]}. The {what} "
                f"{found.k_tokens} tokens, and the queries are {found.q_tokens} of them from {found.q_start} on."
            )


def check_key_lengths(arrays: Arrays, found: Plan, key_lengths: Any) -> Any:
    """Return key_lengths as int32 of the right shape, or None."""
    if key_lengths is None:
        return None
    if not isinstance(key_lengths, (list, tuple)):
        framework_of(arrays.function, key_lengths=key_lengths)
    values = arrays.framework.integers(key_lengths, "key_lengths", arrays.function, arrays.some)
    rows = len(found.streams) if found.packed else arrays.some.shape[0]
    wanted = (rows, found.most_segments)
    if tuple(values.shape) != wanted:
        names = "(samples, most segments)" if found.packed else "(batch, segments)"
        raise ShapeError(
            f"{arrays.function}: `key_lengths` must have shape {names} = {wanted}, got {tuple(values.shape)}. "
            "It holds the valid tokens of each segment."
        )
    return values


def randomness(
    arrays: Arrays, spec: RoutingSpec, training: bool, seed: Any, batch_start: int, head_start: int
) -> Randomness | None:
    """Return the counters of route dropout, or None where there is none to apply."""
    function = arrays.function
    check_flags(function, training=training)
    try:
        number = None if seed is None else arrays.framework.seed(seed, arrays.some)
    except SpecError as error:
        raise SpecError(f"{function}: {error}") from None
    first_row, first_head = (
        value
        if arrays.framework.NAME == "jax" and _is_traced_integer(value)  # lax.axis_index under shard_map
        else whole(value, f"{function}: {argument}", least=0, most=2**32 - 1)
        for argument, value in (("batch_start", batch_start), ("head_start", head_start))
    )
    if not training or spec.dropout is None:
        return None
    if seed is None:
        raise SpecError(f"{function}: seed must be given when training with route dropout, got None. Hint: seed=step.")
    return Randomness(number, first_row, first_head)


def _is_traced_integer(value: Any) -> bool:
    return is_traced(value) and value.ndim == 0 and dtype_name(value).startswith(("int", "uint"))


def check_flags(function: str, **flags: Any) -> None:
    """Raise SpecError unless each argument is True or False."""
    for argument, value in flags.items():
        if not isinstance(value, bool):
            raise SpecError(f"{function}: {argument} must be True or False, got {describe(value)}.")


def checked_scale(function: str, scale: Any, head_dim: int) -> float:
    """Return the factor on logits: as given, or head_dim ** -0.5."""
    if scale is None:
        return float(head_dim**-0.5)
    if getattr(scale, "requires_grad", False):
        raise SpecError(
            f"{function}: scale must be a number that asks for no gradient, got a tensor that does. "
            "Hint: multiply q by it instead."
        )
    array = getattr(scale, "ndim", None) == 0 and not is_traced(scale)
    value = scale.item() if array else scale  # NumPy's scalars and 0-d arrays
    try:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        fits = False
    if not fits:
        raise SpecError(
            f"{function}: scale must be a finite number, or None for head_dim ** -0.5, got {describe(scale)}."
        )
    return float(value)


def checked_options(function: str, options: Any) -> Options:
    """Return the options, the defaults for None."""
    if options is None:
        return Options()
    if not isinstance(options, Options):
        raise SpecError(
            f"{function}: options must be an Options value or None, got {describe(options)}. "
            "Hint: Options(checked=True)."
        )
    return options


def problem_of(
    arrays: Arrays,
    found: Plan,
    *,
    backward: bool | None,
    deterministic: bool | None,
    options: Any,
    kv_heads: int | None = None,
) -> Problem:
    """Return the problem that a backend is asked about.

    Where there is no k, kv_heads must be given. With backward None, the arrays tell whether gradients are asked for.
    """
    function = arrays.function
    if deterministic is not None and not isinstance(deterministic, bool):
        raise SpecError(f"{function}: deterministic must be True, False or None, got {describe(deterministic)}.")
    framework, some = arrays.framework, arrays.some
    q = arrays.of.get("q", some)
    problem = Problem(
        plan=found,
        framework=framework.NAME,
        device=framework.device(some).partition(":")[0],
        dtype=framework.dtype(some),
        batch=q.shape[0],
        heads=q.shape[2],
        kv_heads=arrays.of["k"].shape[2] if kv_heads is None else kv_heads,
        head_dim=some.shape[3],
        v_head_dim=arrays.of.get("v", some).shape[3],
        backward=framework.records(*arrays.of.values()) if backward is None else backward,
        views=framework.views(some),
        deterministic=framework.deterministic() if deterministic is None else deterministic,
        options=checked_options(function, options),
    )
    if "q" in arrays.of:
        found.spec.top_k_of(problem.heads)  # raises where the spec's top_k is for another number of heads
    return problem


def check_layout(arrays: Arrays, layout: Any) -> Layout:
    """Check a layout against the arrays of `attend`, and return it with arrays of their library on their device."""
    if not isinstance(layout, Layout):
        raise SpecError(
            f"{arrays.function}: layout must be a Layout, got {describe(layout)}. Hint: sparsemoc.route(q, k, spec)."
        )
    if layout.plan.packed != arrays.packed:
        rank = 3 if layout.plan.packed else 4
        raise ShapeError(
            f"{arrays.function}: `q` must have rank {rank}, as the layout was made for, got {arrays.rank}."
        )
    check_lengths(arrays, layout.plan)
    q = arrays.of["q"]
    if (layout.batch, layout.heads) != (q.shape[0], q.shape[2]):
        raise ShapeError(
            f"{arrays.function}: `q` must have (batch, heads) = {(layout.batch, layout.heads)} of the layout, "
            f"got {(q.shape[0], q.shape[2])}."
        )
    own, lengths = arrays.framework.own, layout.key_lengths
    selected, lengths = own(layout.selected, q), None if lengths is None else own(lengths, q)
    if selected is layout.selected and lengths is layout.key_lengths:
        return layout  # with what a backend has kept on it
    return Layout(selected, layout.plan, lengths)


def check_d_lse(arrays: Arrays, problem: Problem, d_lse: Any) -> Any:
    """Return d_lse as (batch, heads, queries), or None."""
    if d_lse is None:
        return None
    function = arrays.function
    arrays.check_other("d_lse", d_lse)
    q = arrays.of["q"]
    shape = (q.shape[0], q.shape[2], q.shape[1])
    wanted = shape[1:] if arrays.packed else shape
    dtype = "float64" if problem.dtype == "float64" else "float32"
    if tuple(d_lse.shape) != wanted or arrays.framework.dtype(d_lse) != dtype:
        raise ShapeError(
            f"{function}: `d_lse` must be {dtype} {wanted}, as lse is, "
            f"got {arrays.framework.dtype(d_lse)} {tuple(d_lse.shape)}."
        )
    return arrays.framework.expand(d_lse) if arrays.packed else d_lse


def check_centroids(arrays: Arrays, found: Plan, centroids: Any) -> Any:
    """Return centroids if they are float32 (batch, kv_heads, chunks, head_dim), as `pool` gives them."""
    function = arrays.function
    arrays.check_other("centroids", centroids)
    q = arrays.of["q"]
    chunks = sum(sample.chunks for sample in found.samples) if found.packed else found.chunks
    shape = tuple(centroids.shape)
    fits = len(shape) == 4 and (shape[0], *shape[2:]) == (q.shape[0], chunks, q.shape[3])
    if not fits or arrays.framework.dtype(centroids) != "float32":
        raise ShapeError(
            f"{function}: `centroids` must be float32 (batch, kv_heads, chunks, head_dim) = "
            f"({q.shape[0]}, kv_heads, {chunks}, {q.shape[3]}), as pool gives them, "
            f"got {arrays.framework.dtype(centroids)} {shape}."
        )
    if not shape[1] or q.shape[2] % shape[1]:
        raise ShapeError(
            f"{function}: `q` must have a multiple of the heads of `centroids`, got {q.shape[2]} and {shape[1]}."
        )
    return centroids
