"""Checks of a call that hold for every backend, and its canonical form (batch, tokens, heads, head_dim)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsemoc.backends import Backend, Options, Problem, Randomness, choose
from sparsemoc.frameworks import Framework, framework_of
from sparsemoc.spec.checks import whole
from sparsemoc.spec.errors import ShapeError, SpecError, describe, did_you_mean
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import seed_key
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream

_TO_CANONICAL = {"bshd": (0, 1, 2, 3), "bhsd": (0, 2, 1, 3)}


@dataclass(frozen=True)
class Arrays:
    """The arrays of a call in canonical form, and the way back."""

    function: str
    framework: Framework
    axes: str
    rank: int
    of: dict[str, Any]

    @classmethod
    def check(cls, function: str, axes: str, **given: Any) -> Arrays:
        """Check library, dtype, device, rank and the sizes that arrays share, and bring them to (b, s, h, d)."""
        if axes not in _TO_CANONICAL:
            raise ShapeError(
                f'{function}: axes must be "bshd" or "bhsd", got {describe(axes)}.{did_you_mean(axes, _TO_CANONICAL)}'
            )
        framework = framework_of(function, **given)
        for argument, array in given.items():
            framework.check(array, argument, function)
        rank = given[next(iter(given))].ndim
        canonical = {}
        for argument, array in given.items():
            canonical[argument] = _canonical(function, framework, axes, rank, argument, array)
        arrays = cls(function, framework, axes, rank, canonical)
        arrays._same("dtype", {name: framework.dtype(array) for name, array in given.items()})
        arrays._same("device", {name: framework.device(array) for name, array in given.items()})
        return arrays

    def _same(self, what: str, found: dict[str, str]) -> None:
        if len(set(found.values())) > 1:
            listed = ", ".join(f"`{name}` {value}" for name, value in found.items())
            raise ShapeError(f"{self.function}: all arrays must have one {what}, got {listed}.")

    @property
    def packed(self) -> bool:
        """Whether samples stand end to end in one token axis (rank 3)."""
        return self.rank == 3

    def restore(self, array: Any) -> Any:
        """Return a canonical (b, s, h, d) result in the caller's axes and rank."""
        array = self.framework.transpose(array, _TO_CANONICAL[self.axes])
        return array[0] if self.packed else array

    def restore_lse(self, lse: Any) -> Any:
        """Return a canonical (b, h, s) result in the caller's rank."""
        return lse[0] if self.packed else lse

    def expect(self, argument: str, shape: tuple[int, ...], source: str) -> None:
        """Raise ShapeError unless an array has this canonical shape."""
        got = tuple(self.of[argument].shape)
        if got != shape:
            names = "(tokens, heads, head_dim)" if self.packed else "(batch, tokens, heads, head_dim)"
            wanted, found = (self._shown(s) for s in (shape, got))
            order = "" if self.axes == "bshd" else f' in axes="{self.axes}"'
            raise ShapeError(
                f"{self.function}: `{argument}` must have shape {names} = {wanted}{order}, got {found}. {source}"
            )

    def _shown(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        shown = tuple(shape[axis] for axis in _TO_CANONICAL[self.axes])
        return shown[1:] if self.packed else shown


def _canonical(function: str, framework: Framework, axes: str, rank: int, argument: str, array: Any) -> Any:
    if array.ndim not in (3, 4):
        raise ShapeError(
            f"{function}: `{argument}` must have rank 4 (batch, tokens, heads, head_dim), or 3 for a packed batch, "
            f"got rank {array.ndim} with shape {tuple(array.shape)}."
        )
    if array.ndim != rank:
        raise ShapeError(f"{function}: `{argument}` must have the rank of the others, {rank}, got {array.ndim}.")
    if 0 in array.shape:
        raise ShapeError(f"{function}: `{argument}` must have no axis of size 0, got shape {tuple(array.shape)}.")
    whole_array = framework.expand(array) if rank == 3 else array
    return framework.transpose(whole_array, _TO_CANONICAL[axes])


def check_queries(arrays: Arrays) -> None:
    """Check q against k: batch, head_dim, and the number of heads."""
    q, k = arrays.of["q"], arrays.of["k"]
    source = f"batch and head_dim come from `q`, whose shape is {arrays._shown(tuple(q.shape))}."
    arrays.expect("k", (q.shape[0], k.shape[1], k.shape[2], q.shape[3]), source)
    if q.shape[2] % k.shape[2]:
        raise ShapeError(
            f"{arrays.function}: `q` must have a multiple of the heads of `k`, got {q.shape[2]} and {k.shape[2]}. "
            "Query head h reads key head h // (H_q / H_kv)."
        )


def check_values(arrays: Arrays) -> None:
    """Check v against k."""
    k, v = arrays.of["k"], arrays.of["v"]
    source = f"All but head_dim come from `k`, whose shape is {arrays._shown(tuple(k.shape))}."
    arrays.expect("v", (*k.shape[:3], v.shape[3]), source)


def make_plan(arrays: Arrays, spec: RoutingSpec, stream: Stream | Sequence[Stream] | None, q_start: int | None) -> Plan:
    """Apply the spec to the lengths of the arrays."""
    function = arrays.function
    if not isinstance(spec, RoutingSpec):
        raise SpecError(
            f"{function}: spec must be a RoutingSpec, got {describe(spec)}. Hint: sparsemoc.load_spec(path)."
        )
    several = stream is not None and not isinstance(stream, Stream)
    if several and not arrays.packed:
        raise ShapeError(
            f"{function}: stream must be one Stream for rank 4, which the whole batch shares, got {describe(stream)}. "
            "A tuple of streams goes with packed arrays (tokens, heads, head_dim)."
        )
    if arrays.packed and not several:
        single = stream if stream is not None else spec.stream
        stream = None if single is None else (single,)  # type: ignore[assignment]
    if arrays.packed and q_start is not None:
        raise SpecError(f"{function}: q_start must be left out for packed arrays, got {q_start}. There L_q = L_k.")
    keys = arrays.of.get("k")
    tokens = None
    if stream is None and spec.stream is None:
        if keys is None:
            raise SpecError(f"{function}: stream must be given where `k` is not and the spec has none.")
        tokens = keys.shape[1]
        stream = (Stream((Segment("video", tokens),)),) if arrays.packed else None
    q_tokens = None if arrays.packed else arrays.of["q"].shape[1]
    found = plan(spec, stream, q_start=q_start, q_tokens=q_tokens, tokens=tokens)
    check_lengths(arrays, found)
    return found


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
    values = arrays.framework.integers(key_lengths, "key_lengths", arrays.function)
    rows = len(found.streams) if found.packed else next(iter(arrays.of.values())).shape[0]
    wanted = (rows, found.most_segments)
    if tuple(values.shape) != wanted:
        names = "(samples, most segments)" if found.packed else "(batch, segments)"
        raise ShapeError(
            f"{arrays.function}: `key_lengths` must have shape {names} = {wanted}, got {tuple(values.shape)}. "
            "It holds the valid tokens of each segment."
        )
    return values


def randomness(
    function: str, spec: RoutingSpec, training: bool, seed: Any, batch_start: int, head_start: int
) -> Randomness | None:
    """Return the counters of route dropout, or None where there is none to apply."""
    key = (0, 0) if seed is None else seed_key(seed)
    starts = (
        whole(batch_start, f"{function}: batch_start", least=0, most=2**32 - 1),
        whole(head_start, f"{function}: head_start", least=0, most=2**32 - 1),
    )
    if not isinstance(training, bool):
        raise SpecError(f"{function}: training must be True or False, got {describe(training)}.")
    if not training or spec.dropout is None:
        return None
    if seed is None:
        raise SpecError(f"{function}: seed must be given when training with route dropout, got None. Hint: seed=step.")
    return Randomness(key, *starts)


def checked_scale(function: str, scale: Any, head_dim: int) -> float:
    """Return the factor on logits: as given, or head_dim ** -0.5."""
    if scale is None:
        return float(head_dim**-0.5)
    try:
        if isinstance(scale, (bool, str)):
            raise TypeError
        value = float(scale)
    except (TypeError, ValueError):
        raise SpecError(
            f"{function}: scale must be a finite number, or None for head_dim ** -0.5, got {describe(scale)}."
        ) from None
    if not math.isfinite(value):
        raise SpecError(f"{function}: scale must be a finite number, or None for head_dim ** -0.5, got {value}.")
    return value


def checked_options(function: str, options: Any) -> Options:
    """Return the options, the defaults for None."""
    if options is None:
        return Options()
    if not isinstance(options, Options):
        raise SpecError(
            f"{function}: options must be an Options value or None, got {describe(options)}. Hint: Options(checked=True)."
        )
    return options


def problem_of(
    arrays: Arrays,
    found: Plan,
    *,
    backward: bool,
    deterministic: bool | None,
    options: Any,
    kv_heads: int | None = None,
) -> Problem:
    """Return the problem that a backend is asked about; kv_heads must be given where there is no k."""
    function = arrays.function
    if deterministic is not None and not isinstance(deterministic, bool):
        raise SpecError(f"{function}: deterministic must be True, False or None, got {describe(deterministic)}.")
    some = next(iter(arrays.of.values()))
    q = arrays.of.get("q", some)
    problem = Problem(
        plan=found,
        framework=arrays.framework.NAME,
        device=arrays.framework.device(some),
        dtype=arrays.framework.dtype(some),
        batch=q.shape[0],
        heads=q.shape[2],
        kv_heads=arrays.of["k"].shape[2] if kv_heads is None else kv_heads,
        head_dim=some.shape[3],
        v_head_dim=arrays.of.get("v", some).shape[3],
        backward=backward,
        deterministic=bool(deterministic),
        options=checked_options(function, options),
    )
    found.spec.top_k_of(problem.heads)
    return problem


def choose_backend(problem: Problem, backend: Any, config: Any) -> Backend:
    """Return the backend, with a config that is its own."""
    chosen = choose(problem, backend)
    if config is not None:
        wanted = type(chosen.default_config(problem))
        if not isinstance(config, wanted):
            raise SpecError(f'config must be a {wanted.__name__} for backend "{chosen.name}", got {describe(config)}.')
    return chosen


def check_layout(arrays: Arrays, layout: Any) -> Layout:
    """Check a layout against the arrays of `attend`."""
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
    return layout


def check_d_lse(arrays: Arrays, problem: Problem, d_lse: Any) -> Any:
    """Return d_lse as (batch, heads, queries), or None."""
    if d_lse is None:
        return None
    function = arrays.function
    framework_of(function, d_lse=d_lse)
    arrays.framework.check(d_lse, "d_lse", function)
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
    framework_of(function, centroids=centroids)
    arrays.framework.check(centroids, "centroids", function)
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
    if q.shape[2] % shape[1]:
        raise ShapeError(
            f"{function}: `q` must have a multiple of the heads of `centroids`, got {q.shape[2]} and {shape[1]}."
        )
    return centroids
