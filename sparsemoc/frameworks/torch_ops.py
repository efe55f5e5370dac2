"""Custom operators of torch: pool, route, attend and its gradients, as graphs, checkpoints and autograd see them.

Each takes tensors and one line of text that says the rest, see `portable`. Selection is hard, so `pool` and `route` are
not differentiable; `attend` is, once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from sparsemoc.backends import Randomness, Result
from sparsemoc.frameworks import Framework
from sparsemoc.frameworks.execution import Execution
from sparsemoc.frameworks.portable import static_of
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.layout import Layout

_QKV = "Tensor q, Tensor k, Tensor v, Tensor selected, Tensor? key_lengths"
_POOL = "(Tensor k, Tensor? key_lengths, str run) -> Tensor"
_COUNTERS = "Tensor? seed, SymInt batch_start, SymInt head_start"
_ROUTE = f"(Tensor q, Tensor centroids, Tensor? key_lengths, {_COUNTERS}, str run) -> Tensor"
_ATTEND = f"({_QKV}, float scale, str run) -> (Tensor, Tensor)"
_BACKWARD = (
    f"({_QKV}, Tensor out, Tensor lse, Tensor d_out, Tensor? d_lse, float scale, str run) -> (Tensor, Tensor, Tensor)"
)


def _custom_op(name: str, schema: str) -> Any:
    return torch.library.custom_op(f"sparsemoc::{name}", mutates_args=(), schema=schema)


def execution(run: str, like: Tensor) -> Execution:
    """Return the execution that a line tells, for tensors like one."""
    return static_of(run).execution(torch_framework(), like)


def torch_framework() -> Framework:
    """Return the framework of tensors."""
    from sparsemoc.frameworks import torch as framework  # here, since it calls these operators

    return framework


@_custom_op("pool", _POOL)
def pool(k: Tensor, key_lengths: Tensor | None, run: str) -> Tensor:
    """Return the mean key of each chunk, see `Backend.pool`."""
    return laid(execution(run, k).compute_pool(k, key_lengths))


@_custom_op("route", _ROUTE)
def route(
    q: Tensor,
    centroids: Tensor,
    key_lengths: Tensor | None,
    seed: Tensor | None,
    batch_start: int,
    head_start: int,
    run: str,
) -> Tensor:
    """Return `Layout.selected`; with a seed, route dropout applied."""
    random = None if seed is None else Randomness(seed, batch_start, head_start)
    return laid(execution(run, q).compute_route(q, centroids, key_lengths, random))


@_custom_op("attend", _ATTEND)
def attend(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, key_lengths: Tensor | None, scale: float, run: str
) -> tuple[Tensor, Tensor]:
    """Return out and lse of a selection."""
    whole = execution(run, q)
    out, lse = whole.compute_forward(q, k, v, Layout(selected, whole.problem.plan, key_lengths), scale)
    return laid(out, q), laid(lse)


@_custom_op("attend_backward", _BACKWARD)
def attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    key_lengths: Tensor | None,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    scale: float,
    run: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv of a selection."""
    whole = execution(run, q)
    layout = Layout(selected, whole.problem.plan, key_lengths)
    return laid_gradients(whole, q, k, v, layout, scale, Result(out, lse), d_out, d_lse)


def laid_gradients(run: Execution, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `run.compute_backward` gives of these arguments, in the strides that the fakes have."""
    grads = run.compute_backward(q, k, v, *rest)
    dq, dk, dv = (laid(grad, x) for grad, x in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv


@pool.register_fake
def _pool_fake(k: Tensor, key_lengths: Tensor | None, run: str) -> Tensor:
    plan = static_of(run).plan
    chunks = sum(sample.chunks for sample in plan.samples) if plan.packed else plan.chunks
    return k.new_empty((k.shape[0], k.shape[2], chunks, k.shape[3]), dtype=torch.float32)


@route.register_fake
def _route_fake(q: Tensor, centroids: Tensor, *rest: Any) -> Tensor:
    slots = static_of(rest[-1]).plan.slots
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], slots), dtype=torch.int32)


@attend.register_fake
def _attend_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_result(q, v)


@attend_backward.register_fake
def _attend_backward_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_rows(q, q.shape), empty_rows(k, k.shape), empty_rows(v, v.shape)


def empty_result(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return out and lse without their values."""
    dtype = torch.float64 if q.dtype is torch.float64 else torch.float32
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=dtype)
    return empty_rows(q, (*q.shape[:3], v.shape[3])), lse


def empty_rows(like: Tensor, shape: Any) -> Tensor:
    """Return a new (batch, tokens, heads, dim) tensor whose heads or tokens lie together, as those of `like` do."""
    return torch.empty_permuted(shape, _order(like), dtype=like.dtype, device=like.device)


def _order(like: Tensor) -> tuple[int, ...]:
    """Return the order in which the axes of rows like these lie in memory; the same read backwards."""
    return (0, 2, 1, 3) if like.stride(2) > like.stride(1) else (0, 1, 2, 3)


def laid(array: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a result in the strides that its fake has: compiled code reads it by those."""
    if like is None:
        return array.contiguous()
    order = _order(like)
    return array.permute(order).contiguous().permute(order)


def _nothing(ctx: Any, *grads: Any) -> Any:
    return (None,) * ctx.inputs


def _not_differentiable(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.inputs = len(inputs)
    ctx.mark_non_differentiable(output)


pool.register_autograd(_nothing, setup_context=_not_differentiable)
route.register_autograd(_nothing, setup_context=_not_differentiable)


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the gradients of `attend` need."""
    q, k, v, selected, key_lengths, ctx.scale, ctx.run = inputs
    # The layout's tensors too: what is kept elsewhere, hooks that offload or recompute would never see.
    ctx.save_for_backward(marker(ctx.run, q.device), q, k, v, selected, key_lengths, *output)
    ctx.set_materialize_grads(False)


def marker(text: str, device: torch.device) -> Tensor:
    """Return an empty tensor whose shape stands for a text.

    Kept for the backward, it lets a checkpoint see that it computed anew by another spec than before: it compares
    shapes. The selection of another plan may name chunks that this one does not have.
    """
    return torch.empty((crc32(text.encode()) % 2**20, 0), device=device)


def gradients(operator: Callable[..., Any], ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
    """Return the gradients of the inputs of `attend`, by `attend_backward` or what does its work."""
    return (*needed(operator, ctx, d_out, d_lse, ctx.scale, ctx.run), None, None, None, None)


def needed(
    operator: Callable[..., Any], ctx: Any, d_out: Tensor | None, d_lse: Tensor | None, *rest: Any
) -> tuple[Tensor | None, ...]:
    """Return dq, dk, dv where they are asked for, by an operator that takes what was saved, d_out, d_lse, the rest."""
    if d_out is None and d_lse is None:
        return None, None, None
    _, *saved, out, lse = ctx.saved_tensors
    d_out = torch.zeros_like(out) if d_out is None else d_out
    grads = operator(*saved, out, lse, d_out, d_lse, *rest)
    return tuple(grad if need else None for grad, need in zip(grads, ctx.needs_input_grad[:3], strict=True))


def no_second(ctx: Any, *grads: Tensor | None) -> None:
    """Raise: there are no gradients of the gradients."""
    raise UnsupportedError(
        "attention: gradients must be taken once, got a second derivative: there is none of the gradients. "
        "Hint: leave out create_graph=True, or detach the first gradients."
    )


attend.register_autograd(partial(gradients, attend_backward), setup_context=keep)
attend_backward.register_autograd(no_second)
