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
from sparsemoc.frameworks import torch_ops, torch_transforms, torch_tree  # noqa: F401  it makes a tree of Layout
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


def checked(array: Any, argument: str, function: str) -> torch.Tensor:
    """Return a tensor in the dtype of the autocast region, if it is dense, float and without a tangent; or raise."""
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
    return torch_transforms.cast(array)


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
    if isinstance(value, torch.SymInt):  # a whole number that a compiler keeps open; its number would compile anew
        return torch.full((), value, dtype=torch.int64, device=like.device)
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


def pool(run: Execution, k: torch.Tensor, key_lengths: torch.Tensor | None) -> Any:
    """Return the mean key of each chunk."""
    return torch_ops.pool(k.detach(), key_lengths, run.line)


def route(
    run: Execution,
    q: torch.Tensor,
    centroids: torch.Tensor,
    key_lengths: torch.Tensor | None,
    randomness: Randomness | None,
) -> Any:
    """Return `Layout.selected`."""
    line, q, centroids = run.line, q.detach(), centroids.detach()
    if randomness is None:
        return torch_ops.route(q, centroids, key_lengths, None, 0, 0, line)
    seed = _seed_tensor(randomness.seed, q.device)
    return torch_ops.route(q, centroids, key_lengths, seed, randomness.batch_start, randomness.head_start, line)


def _seed_tensor(value: Any, device: torch.device) -> torch.Tensor:
    """Return a seed as a 0-d int64 tensor, its 64 bits: filled on the device, for a copy would wait."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.full((), (value + 2**63) % 2**64 - 2**63, dtype=torch.int64, device=device)


def attend(run: Execution, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scale: float) -> Result:
    """Return out and lse, both differentiable where autograd records."""
    return Result(*torch_transforms.attend(q, k, v, layout.selected, layout.key_lengths, scale, run.line))


def backward(
    run: Execution,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    scale: float,
    result: Result,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dq, dk, dv."""
    dq, dk, dv = torch_ops.attend_backward(
        q, k, v, layout.selected, layout.key_lengths, *result, d_out, d_lse, scale, run.line
    )
    return dq, dk, dv
