"""Torch tensors: on the CPU any backend that takes NumPy arrays serves them, in their own memory; with autograd.

Nothing here reads a tensor, so nothing waits for a device.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import forward_ad

from sparsemoc.backends import Randomness, Result
from sparsemoc.frameworks import numpy as numpy_arrays
from sparsemoc.frameworks.execution import Execution
from sparsemoc.spec.errors import ShapeError, UnsupportedError, describe
from sparsemoc.spec.host import dtype_name, host
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import seed_number

NAME = "torch"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Of key_lengths; int64 holds them all.
INTEGERS = (torch.uint8, torch.uint16, torch.uint32, torch.int8, torch.int16, torch.int32, torch.int64)
#: The same two bytes, for NumPy has no bfloat16 of its own and torch does not know that of ml_dtypes.
_BITS = torch.int16


def check(array: Any, argument: str, function: str) -> None:
    """Raise unless the array is a dense float tensor of a dtype that is served, without a forward-mode tangent."""
    if not isinstance(array, torch.Tensor):
        raise ShapeError(f"{function}: `{argument}` must be a torch tensor, got {describe(array)}.")
    if array.layout is not torch.strided or array.is_nested:
        kind = "a nested tensor" if array.is_nested else str(array.layout).removeprefix("torch.")
        raise ShapeError(
            f"{function}: `{argument}` must be a dense, strided tensor, got {kind}. Hint: tensor.to_dense(), or for "
            "samples of unlike length a packed batch."
        )
    if array.dtype not in DTYPES:
        raise ShapeError(
            f"{function}: `{argument}` must be {', '.join(numpy_arrays.DTYPES)}, got {dtype(array)}. "
            "Hint: tensor.float()."
        )
    if array.is_neg():
        raise ShapeError(
            f"{function}: `{argument}` must hold its values, got a view whose sign is yet to be turned. "
            "Hint: tensor.resolve_neg()."
        )
    if forward_ad.unpack_dual(array).tangent is not None:
        raise UnsupportedError(
            f"{function}: `{argument}` must carry no tangent, got a dual tensor: there is no forward-mode derivative. "
            "Hint: use reverse mode, out.backward()."
        )


def device(array: torch.Tensor) -> str:
    """Return the device, "cpu" or "cuda:0"."""
    return str(array.device)


def dtype(array: torch.Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return dtype_name(array)


def integers(array: Any, argument: str, function: str, like: torch.Tensor) -> torch.Tensor:
    """Return integers, in a tensor, an array or a sequence, as int32 on the device of `like`."""
    if not isinstance(array, torch.Tensor):
        return own(numpy_arrays.integers(array, argument, function), like)
    if array.dtype not in INTEGERS:
        raise ShapeError(
            f"{function}: `{argument}` must be an integer tensor, got dtype {dtype(array)}. "
            "Hint: tensor.to(torch.int32)."
        )
    return array.to(device=like.device, dtype=torch.int64).clamp(0, 2**31 - 1).to(torch.int32)


def seed(value: Any, like: torch.Tensor) -> Any:
    """Return a 0-d integer tensor as int64 on the device of `like`, anything else as an int in [0, 2**64)."""
    if isinstance(value, torch.Tensor) and value.ndim == 0 and value.dtype in (*INTEGERS, torch.uint64):
        return value.to(device=like.device, dtype=torch.int64)
    return seed_number(value)


def transpose(array: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return a view with the axes in another order."""
    return array.permute(axes)


def expand(array: torch.Tensor) -> torch.Tensor:
    """Return a view with a batch axis of 1 in front."""
    return array.unsqueeze(0)


def views(array: torch.Tensor) -> tuple[str, ...]:
    """Return NumPy for what lies on the CPU."""
    return (numpy_arrays.NAME,) if array.device.type == "cpu" else ()


def show(array: torch.Tensor, framework: str) -> Any:
    """Return the tensor without its record of gradients, or a NumPy array in its memory."""
    array = array.detach()
    if framework == NAME:
        return array
    if array.dtype is torch.bfloat16:
        return array.view(_BITS).numpy().view(ml_dtypes.bfloat16)
    return array.numpy()


def own(array: Any, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor or a NumPy array as a tensor on the device of `like`: the same memory where it can be."""
    tensor = array if isinstance(array, torch.Tensor) else _from_numpy(host(array))
    return tensor.to(like.device)


def _from_numpy(array: NDArray[Any]) -> torch.Tensor:
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):  # tensors are neither
        array = array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def deterministic() -> bool:
    """Return whether torch is set to deterministic algorithms; it cannot see whether ours are."""
    return bool(torch.are_deterministic_algorithms_enabled())


def records(*arrays: torch.Tensor) -> bool:
    """Return whether autograd records what is computed from the tensors."""
    return torch.is_grad_enabled() and any(array.requires_grad for array in arrays)


def pool(run: Execution, k: torch.Tensor, key_lengths: torch.Tensor | None) -> torch.Tensor:
    """Return the mean key of each chunk."""
    return run.compute_pool(k, key_lengths)


def route(
    run: Execution,
    q: torch.Tensor,
    centroids: torch.Tensor,
    key_lengths: torch.Tensor | None,
    randomness: Randomness | None,
) -> torch.Tensor:
    """Return `Layout.selected`."""
    return run.compute_route(q, centroids, key_lengths, randomness)


def attend(run: Execution, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scale: float) -> Result:
    """Return out and lse, both differentiable where autograd records."""
    if not records(q, k, v):
        return run.compute_forward(q, k, v, layout, scale)
    return Result(*_Attend.apply(run, layout, scale, q, k, v))


def backward(run: Execution, *given: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dq, dk, dv."""
    return run.compute_backward(*given)


class _Attend(torch.autograd.Function):
    """out and lse of q, k, v; the choice of chunks is hard, so nothing flows through the layout."""

    @staticmethod
    def forward(
        ctx: Any, run: Execution, layout: Layout, scale: float, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = run.compute_forward(q, k, v, layout, scale)
        ctx.run, ctx.plan, ctx.scale = run, layout.plan, scale
        # The layout's tensors too: what is kept elsewhere, hooks that offload or recompute would never see.
        ctx.save_for_backward(q, k, v, layout.selected, layout.key_lengths, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor | None, d_lse: torch.Tensor | None) -> tuple[Any, ...]:
        if d_out is None and d_lse is None:
            return (None,) * 6
        q, k, v, selected, key_lengths, out, lse = ctx.saved_tensors
        layout = Layout(selected, ctx.plan, key_lengths)
        d_out = torch.zeros_like(out) if d_out is None else d_out
        grads = _Gradients.apply(ctx.run, layout, ctx.scale, Result(out, lse), q, k, v, d_out, d_lse)
        needed = ctx.needs_input_grad[3:]
        return (None, None, None, *(grad if need else None for grad, need in zip(grads, needed, strict=True)))


class _Gradients(torch.autograd.Function):
    """dq, dk, dv: a function of its own, so that asking for its gradients, and that alone, is an error."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Execution,
        layout: Layout,
        scale: float,
        result: Result,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        d_out: torch.Tensor,
        d_lse: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return run.compute_backward(q, k, v, layout, scale, result, d_out, d_lse)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> None:
        raise UnsupportedError(
            "attention: gradients must be taken once, got a second derivative: there is none of the gradients. "
            "Hint: leave out create_graph=True, or detach the first gradients."
        )
