"""Attention whose number of tokens a compiler keeps open: one graph for every length.

A plan is for one length, so here it is made when the operator runs and the numbers are known; and so are the checks.
Only a call without a stream can be served so: its keys are one video segment, however long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sparsemoc.backends import Options, Result
from sparsemoc.frameworks import torch_ops, torch_transforms
from sparsemoc.frameworks.execution import Execution
from sparsemoc.frameworks.portable import problem_like
from sparsemoc.frameworks.told import restored
from sparsemoc.frameworks.traced import FUNCTIONS
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.plan import plan
from sparsemoc.spec.routing import RoutingSpec

_NAME = "sparsemoc.api.attention"
_TENSORS = ("q", "k", "v", "key_lengths", "seed")
_FORWARD = "(Tensor q, Tensor k, Tensor v, Tensor? key_lengths, Tensor? seed, str call) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    "(Tensor q, Tensor k, Tensor v, Tensor selected, Tensor? key_lengths, Tensor out, Tensor lse, Tensor d_out, "
    "Tensor? d_lse, str call) -> (Tensor, Tensor, Tensor)"
)


def serves(name: str, given: Mapping[str, Any]) -> bool:
    """Return whether a call is attention of open length, in a form that does without the plan until it runs."""
    q, spec = given.get("q"), given.get("spec")
    if name != _NAME or not isinstance(q, Tensor) or q.ndim != 4 or not isinstance(spec, RoutingSpec):
        return False
    if spec.stream is not None or spec.chunks.bounds is not None:
        return False
    if any(given.get(argument) is not None for argument in ("stream", "q_start")) or given.get("return_layout"):
        return False
    tokens = [x.shape[1 if given.get("axes", "bshd") == "bshd" else 2] for x in (q, given["k"])]
    return any(isinstance(size, torch.SymInt) for size in tokens)


def call(told: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Return what `attention` returns."""
    turn = given.get("axes") == "bhsd"
    arrays = (torch_transforms.cast(given[name]) for name in ("q", "k", "v"))
    q, k, v = (x.transpose(1, 2) if turn else x for x in arrays)
    lengths, seed = given.get("key_lengths"), given.get("seed")
    if seed is not None and not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=q.device)
    rest = {name: value for name, value in told.items() if name not in (*_TENSORS, "axes", "return_lse")}
    text = json.dumps(rest, default=int)  # what else is open becomes its number
    out, lse, _ = attend_open(q, k, v, lengths, seed, text)
    out = out.transpose(1, 2) if turn else out
    return (out, lse) if given.get("return_lse") else out


@lru_cache(maxsize=256)
def _arguments(call: str) -> dict[str, Any]:
    return restored(FUNCTIONS[_NAME], json.loads(call))


def _slots(call: str) -> int:
    """Return the width of a selection of any length: that of `Layout.selected` where there are enough chunks."""
    spec = _arguments(call)["spec"]
    return int(spec.max_top_k + (0 if spec.dropout is None else spec.dropout.into_max))


@torch.library.custom_op("sparsemoc::attend_open", mutates_args=(), schema=_FORWARD)
def attend_open(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, seed: Tensor | None, call: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, lse and the selection, -1 beyond what this length has."""
    tensors = dict(zip(_TENSORS, (q, k, v, key_lengths, seed), strict=True))
    out, lse, layout = FUNCTIONS[_NAME](**{**_arguments(call), **tensors}, return_lse=True, return_layout=True)
    more = _slots(call) - layout.selected.shape[3]
    selected = torch.nn.functional.pad(layout.selected, (0, more), value=-1)
    return torch_ops.laid(out, q), torch_ops.laid(lse), torch_ops.laid(selected)


@torch.library.custom_op("sparsemoc::attend_open_backward", mutates_args=(), schema=_BACKWARD)
def attend_open_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    key_lengths: Tensor | None,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    call: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv."""
    run = _execution(q, k, v, _arguments(call))
    found = run.problem.plan
    lengths = None if key_lengths is None else run.framework.integers(key_lengths, "key_lengths", "attention", q)
    layout = Layout(selected[..., : found.slots], found, lengths)
    scale = _arguments(call).get("scale")
    scale = float(q.shape[3] ** -0.5) if scale is None else float(scale)
    return torch_ops.laid_gradients(run, q, k, v, layout, scale, Result(out, lse), d_out, d_lse)


def _execution(q: Tensor, k: Tensor, v: Tensor, given: Mapping[str, Any]) -> Execution:
    """Return the execution of a call that has passed every check in its forward."""
    framework = torch_ops.torch_framework()
    wish = given.get("deterministic")
    problem = problem_like(
        framework,
        q,
        plan=plan(given["spec"], tokens=k.shape[1], q_tokens=q.shape[1]),
        heads=q.shape[2],
        kv_heads=k.shape[2],
        head_dim=q.shape[3],
        v_head_dim=v.shape[3],
        backward=True,
        deterministic=framework.deterministic() if wish is None else wish,
        options=given.get("options") or Options(),
    )
    return Execution.choose("attention", framework, problem, given.get("backend", "auto"), given.get("config"))


@attend_open.register_fake
def _attend_open_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    selected = q.new_empty((q.shape[0], q.shape[2], q.shape[1], _slots(rest[-1])), dtype=torch.int32)
    return *torch_ops.empty_result(q, v), selected


@attend_open_backward.register_fake
def _attend_open_backward_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch_ops.empty_rows(q, q.shape), torch_ops.empty_rows(k, k.shape), torch_ops.empty_rows(v, v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, key_lengths, _, ctx.call = inputs
    out, lse, selected = output
    ctx.save_for_backward(torch_ops.marker(ctx.call, q.device), q, k, v, selected, key_lengths, out, lse)
    ctx.mark_non_differentiable(selected)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None, _: Any) -> tuple[Any, ...]:
    grads = torch_ops.needed(attend_open_backward, ctx, d_out, d_lse, ctx.call)
    return (*grads, None, None, None)


attend_open.register_autograd(_gradients, setup_context=_keep)
attend_open_backward.register_autograd(torch_ops.no_second)
