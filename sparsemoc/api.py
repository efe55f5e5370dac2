"""The public functions: attention, its two halves, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsemoc import call
from sparsemoc.backends import Backend, Options, Problem, Result
from sparsemoc.frameworks.arrays import Arrays
from sparsemoc.frameworks.execution import Execution
from sparsemoc.frameworks.traced import traced_whole
from sparsemoc.spec.errors import ShapeError, SpecError, describe
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.plan import Plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream

Array = Any


@traced_whole
def attention(
    q: Array,
    k: Array,
    v: Array,
    spec: RoutingSpec,
    *,
    stream: Stream | Sequence[Stream] | None = None,
    key_lengths: Array | None = None,
    scale: float | None = None,
    axes: str = "bshd",
    q_start: int | None = None,
    training: bool = False,
    seed: Any = None,
    deterministic: bool | None = None,
    backend: str | Backend = "auto",
    config: Any = None,
    options: Options | None = None,
    batch_start: int = 0,
    head_start: int = 0,
    return_lse: bool = False,
    return_layout: bool = False,
) -> Any:
    """Mixture of Contexts attention: each query attends to its anchors and to the chunks it matches best.

    out_i = softmax(scale * q_i . K[S(i)]) V[S(i)], S(i) = A(i) united with the keys of the top_k candidate chunks j
    with the highest score <q_i, mean of K[j]>; lse_i is the natural log of the sum of exponentials. See RoutingSpec.
    Of torch tensors and JAX arrays, out and lse are differentiable: once, in reverse mode. For NumPy and CuPy arrays
    there is `attention_grads`.

    Args:
        q: NumPy, CuPy or JAX array or torch tensor (batch, queries, heads, head_dim), float16 | bfloat16 | float32 |
            float64, any strides; or packed (tokens, heads, head_dim), samples end to end. NaN and infinity are
            allowed: a NaN score ranks first, so that a NaN is never hidden.
        k: (batch, keys, kv_heads, head_dim), library, dtype and device of q; heads % kv_heads == 0.
        v: (batch, keys, kv_heads, v_head_dim), as k.
        spec: the routing spec.
        stream: the tokens, where the spec has no stream; packed: a tuple, one for each sample. With neither, the
            keys are one video segment.
        key_lengths: int (batch, segments), packed (samples, most segments): valid tokens of each segment, from its
            start; clamped to [0, tokens].
        scale: factor on logits, head_dim ** -0.5 when None.
        axes: "bshd", or "bhsd" for (batch, heads, tokens, head_dim); packed (heads, tokens, head_dim).
        q_start: stream position of the first query; by default the queries are the last of the stream.
        training: whether the spec's route dropout is applied.
        seed: of route dropout; an int or a 0-d integer array, which on a device is never read by the host.
        deterministic: True asks for bitwise repeatable and batch-invariant results; None for what torch is set to.
        backend: a name of available_backends(), a Backend, or "auto". A name is obeyed or refused, never replaced.
        config: the backend's tunables, None for its default.
        options: see Options.
        batch_start, head_start: global numbers of the first batch row and query head, for route dropout when sharded;
            of JAX arrays they may be traced, from jax.lax.axis_index.
        return_lse, return_layout: whether to return lse and the Layout as well.

    Returns:
        out, as q with v's head_dim; then lse (batch, heads, queries), packed (heads, tokens), if asked for; then the
        Layout, if asked for. Queries that see no key have out 0 and lse -inf.

    Raises:
        SpecError, ShapeError: an argument breaks a rule; the text names it, the rule, the value and a hint.
        UnsupportedError: the named backend (with "auto", every backend) refuses the problem.

    Example:
        >>> import numpy as np, sparsemoc as moc
        >>> spec = moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=2, anchors=("chunk",))
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 128, 2, 32), np.float32)
        >>> out, layout = moc.attention(q, k, v, spec, return_layout=True)
        >>> out.shape, layout.density()  # its own chunk and two of the other seven
        ((1, 128, 2, 32), 0.375)

    Source: arXiv 2508.21058, equations 2 and 3.
    """
    call.check_flags("attention", return_lse=return_lse, return_layout=return_layout)
    arrays = Arrays.check("attention", axes, q=q, k=k, v=v)
    call.check_queries(arrays)
    call.check_values(arrays)
    found = call.make_plan(arrays, spec, stream, q_start)
    lengths = call.check_key_lengths(arrays, found, key_lengths)
    random = call.randomness(arrays, spec, training, seed, batch_start, head_start)
    factor = call.checked_scale("attention", scale, arrays.of["q"].shape[3])
    problem = call.problem_of(arrays, found, backward=None, deterministic=deterministic, options=options)
    run = _execution(arrays, problem, backend, config)
    layout = _routed(run, arrays, lengths, random)
    result = run.attend(*_qkv(arrays), layout, factor)
    return _returned(arrays, result, layout, return_lse, return_layout)


@traced_whole
def attention_grads(
    q: Array,
    k: Array,
    v: Array,
    spec: RoutingSpec,
    d_out: Array,
    *,
    d_lse: Array | None = None,
    stream: Stream | Sequence[Stream] | None = None,
    key_lengths: Array | None = None,
    scale: float | None = None,
    axes: str = "bshd",
    q_start: int | None = None,
    training: bool = False,
    seed: Any = None,
    deterministic: bool | None = None,
    backend: str | Backend = "auto",
    config: Any = None,
    options: Options | None = None,
    batch_start: int = 0,
    head_start: int = 0,
) -> tuple[Array, Array, Array]:
    """Return the gradients of `attention` with respect to q, k and v, for frameworks without autograd.

    Selection is hard: with P the softmax and dP_ij = <d_out_i, v_j>, dS = P * (dP - <d_out_i, out_i> + d_lse_i),
    dq = scale * dS K, dk = scale * dS^T Q, dv = P^T d_out.

    Args:
        q, k, v, spec: as for `attention`, and so are the other keyword arguments.
        d_out: gradient of out; its shape and dtype.
        d_lse: gradient of lse, its shape and dtype; None for zero.

    Returns:
        (dq, dk, dv), each as its input. Queries that see no key have gradient 0.

    Raises:
        SpecError, ShapeError, UnsupportedError: as `attention`.
    """
    arrays = Arrays.check("attention_grads", axes, q=q, k=k, v=v, d_out=d_out)
    call.check_queries(arrays)
    call.check_values(arrays)
    query, value, out_grad = arrays.of["q"], arrays.of["v"], arrays.of["d_out"]
    arrays.expect(
        "d_out", (*query.shape[:3], value.shape[3]), "It has the shape of out: that of `q` with v's head_dim."
    )
    found = call.make_plan(arrays, spec, stream, q_start)
    lengths = call.check_key_lengths(arrays, found, key_lengths)
    random = call.randomness(arrays, spec, training, seed, batch_start, head_start)
    factor = call.checked_scale("attention_grads", scale, query.shape[3])
    problem = call.problem_of(arrays, found, backward=True, deterministic=deterministic, options=options)
    lse_grad = call.check_d_lse(arrays, problem, d_lse)
    run = _execution(arrays, problem, backend, config)
    layout = _routed(run, arrays, lengths, random)
    q, k, v = (arrays.framework.show(array, arrays.framework.NAME) for array in _qkv(arrays))  # nothing to record
    result = run.attend(q, k, v, layout, factor)
    grads = run.backward(q, k, v, layout, factor, result, out_grad, lse_grad)
    dq, dk, dv = (arrays.restore(grad) for grad in grads)
    return dq, dk, dv


@traced_whole
def route(
    q: Array,
    k: Array | None,
    spec: RoutingSpec,
    *,
    stream: Stream | Sequence[Stream] | None = None,
    key_lengths: Array | None = None,
    axes: str = "bshd",
    q_start: int | None = None,
    training: bool = False,
    seed: Any = None,
    deterministic: bool | None = None,
    backend: str | Backend = "auto",
    config: Any = None,
    options: Options | None = None,
    batch_start: int = 0,
    head_start: int = 0,
    centroids: Array | None = None,
) -> Layout:
    """Return which chunks each query takes: the first half of `attention`, for reuse or inspection.

    Args:
        q, k, spec: as for `attention`, and so are the other keyword arguments.
        centroids: mean keys from `pool`, so that the keys may live elsewhere; then k is None, and the stream is
            given or the spec's own.

    Returns:
        The Layout.

    Raises:
        SpecError, ShapeError, UnsupportedError: as `attention`.
    """
    if (k is None) == (centroids is None):
        raise ShapeError("route: exactly one of `k` and `centroids` must be given. Hint: route(q, k, spec).")
    arrays = Arrays.check("route", axes, q=q) if k is None else Arrays.check("route", axes, q=q, k=k)
    if k is not None:
        call.check_queries(arrays)
    found = call.make_plan(arrays, spec, stream, q_start)
    lengths = call.check_key_lengths(arrays, found, key_lengths)
    random = call.randomness(arrays, spec, training, seed, batch_start, head_start)
    means = None if centroids is None else call.check_centroids(arrays, found, centroids)
    kv_heads = arrays.of["k"].shape[2] if means is None else means.shape[1]
    problem = call.problem_of(
        arrays, found, backward=False, deterministic=deterministic, options=options, kv_heads=kv_heads
    )
    return _routed(_execution(arrays, problem, backend, config), arrays, lengths, random, means)


@traced_whole
def attend(
    q: Array,
    k: Array,
    v: Array,
    layout: Layout,
    *,
    scale: float | None = None,
    axes: str = "bshd",
    deterministic: bool | None = None,
    backend: str | Backend = "auto",
    config: Any = None,
    options: Options | None = None,
    return_lse: bool = False,
) -> Any:
    """Attend each query to its anchors and to the chunks its layout holds: the second half of `attention`.

    Args:
        q, k, v: as for `attention`, and so are the other keyword arguments.
        layout: from `route`, for these lengths; its arrays move to the library and device of q.

    Returns:
        out, or (out, lse), as `attention`.

    Raises:
        LayoutError: with Options(checked=True), a layout whose data break a rule.
        SpecError, ShapeError, UnsupportedError: as `attention`.
    """
    call.check_flags("attend", return_lse=return_lse)
    arrays = Arrays.check("attend", axes, q=q, k=k, v=v)
    call.check_queries(arrays)
    call.check_values(arrays)
    layout = call.check_layout(arrays, layout)
    factor = call.checked_scale("attend", scale, arrays.of["q"].shape[3])
    problem = call.problem_of(arrays, layout.plan, backward=None, deterministic=deterministic, options=options)
    if problem.options.checked:
        layout.validate()
    result = _execution(arrays, problem, backend, config).attend(*_qkv(arrays), layout, factor)
    return _returned(arrays, result, layout, return_lse, return_layout=False)


@traced_whole
def pool(
    k: Array, plan: Plan, *, key_lengths: Array | None = None, axes: str = "bshd", backend: str | Backend = "auto"
) -> Array:
    """Return the mean key of each chunk, m_j = (sum of the chunk's valid keys) / count.

    Args:
        k: (batch, keys, kv_heads, head_dim), or packed (tokens, kv_heads, head_dim).
        plan: from `plan(spec, stream)`.
        key_lengths, axes, backend: as for `attention`.

    Returns:
        float32 (batch, kv_heads, chunks, head_dim), 0 where a chunk has no valid key; packed (1, kv_heads, chunks of
        all samples, head_dim).

    Raises:
        SpecError, ShapeError, UnsupportedError: as `attention`.
    """
    arrays = Arrays.check("pool", axes, k=k)
    if not isinstance(plan, Plan):
        raise SpecError(f"pool: plan must be a Plan, got {describe(plan)}. Hint: sparsemoc.plan(spec, stream).")
    if plan.packed != arrays.packed:
        raise ShapeError(f"pool: `k` must have rank {3 if plan.packed else 4}, as the plan asks, got {arrays.rank}.")
    call.check_lengths(arrays, plan)
    lengths = call.check_key_lengths(arrays, plan, key_lengths)
    problem = call.problem_of(arrays, plan, backward=False, deterministic=None, options=None)
    return _execution(arrays, problem, backend, None).pool(arrays.of["k"], lengths)


def _execution(arrays: Arrays, problem: Problem, backend: str | Backend, config: Any) -> Execution:
    return Execution.choose(arrays.function, arrays.framework, problem, backend, config)


def _routed(run: Execution, arrays: Arrays, lengths: Any, random: Any, means: Any = None) -> Layout:
    means = run.pool(arrays.of["k"], lengths) if means is None else means
    return run.route(arrays.of["q"], means, lengths, random)


def _qkv(arrays: Arrays) -> tuple[Array, Array, Array]:
    return arrays.of["q"], arrays.of["k"], arrays.of["v"]


def _returned(arrays: Arrays, result: Result, layout: Layout, return_lse: bool, return_layout: bool) -> Any:
    parts = [arrays.restore(result.out)]
    if return_lse:
        parts.append(arrays.restore_lse(result.lse))
    if return_layout:
        parts.append(layout)
    return parts[0] if len(parts) == 1 else tuple(parts)
