"""What autocast and the transforms of torch.func do to the custom operators.

Autocast: q, k and v in the region's dtype, as torch's own attention takes them; what is float32 by definition,
centroids and lse, stays. vmap: the mapped axis joins the batch, for no sample's result depends on the others; what
counts batch rows or has no batch, route dropout and packed samples, goes one by one, so that each is what it is alone.
grad: torch.func differentiates no custom operator, only an autograd.Function with a context of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsemoc.frameworks import torch_ops
from sparsemoc.frameworks.portable import static_of

#: Operators, and how many arguments from the first on are cast.
_CAST = {"pool": 1, "route": 1, "attend": 3}
_AUTOCAST = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}
_LIBRARY = torch.library.Library("sparsemoc", "FRAGMENT")


def cast(array: Tensor) -> Tensor:
    """Return a tensor in the dtype of the autocast region around it; float64 and integers stay."""
    kind = array.device.type
    if kind not in _AUTOCAST or not torch.is_autocast_enabled(kind) or not array.is_floating_point():
        return array
    return array if array.dtype is torch.float64 else array.to(torch.get_autocast_dtype(kind))


def _register_autocast(name: str, count: int, key: Any) -> None:
    operator = getattr(torch_ops, name)

    def run(*args: Any) -> Any:
        given = [*map(cast, args[:count]), *args[count:]]
        # Without autocast: the operator would come here again.
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return operator(*given)

    _LIBRARY.impl(name, run, key.name)


def _register_vmap(name: str, alone: Callable[..., bool]) -> None:
    operator = getattr(torch_ops, name)

    def run(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        if alone(*args):
            results = [operator(*(_item(x, dim, i) for x, dim in zip(args, in_dims, strict=True))) for i in range(size)]
            return _each(lambda *parts: torch.stack(parts), *results), _each(lambda _: 0, results[0])
        folded = [_folded(x, dim, size) if isinstance(x, Tensor) else x for x, dim in zip(args, in_dims, strict=True)]
        result = operator(*folded)
        return _each(lambda x: x.unflatten(0, (size, -1)), result), _each(lambda _: 0, result)

    operator.register_vmap(run)


def _each(change: Callable[..., Any], *results: Any) -> Any:
    """Apply a function to the tensor, or to each of the tensors, that an operator returns."""
    if isinstance(results[0], tuple):
        return tuple(change(*parts) for parts in zip(*results, strict=True))
    return change(*results)


def _item(array: Any, dim: int | None, index: int) -> Any:
    return array if dim is None else array.select(dim, index)


def _folded(array: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a tensor with the mapped axis as the outer part of its first."""
    whole = array.expand(size, *array.shape) if dim is None else array.movedim(dim, 0)
    return whole.flatten(0, 1)


def _packed(*args: Any) -> bool:
    return static_of(args[-1]).plan.packed


def _packed_or_counted(*args: Any) -> bool:
    return _packed(*args) or args[3] is not None


class _Attend(torch.autograd.Function):
    """The operator `attend` under torch.func."""

    generate_vmap_rule = True
    forward = staticmethod(torch_ops.attend)
    setup_context = staticmethod(torch_ops.keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return torch_ops.gradients(_Gradients.apply, ctx, *grads)


class _Gradients(torch.autograd.Function):
    """The operator `attend_backward` under torch.func."""

    generate_vmap_rule = True
    forward = staticmethod(torch_ops.attend_backward)
    backward = staticmethod(torch_ops.no_second)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: see `no_second`."""


def attend(*args: Any) -> Any:
    """Return what the operator `attend` gives, differentiable by autograd and by torch.func alike."""
    return _Attend.apply(*args) if torch._C._are_functorch_transforms_active() else torch_ops.attend(*args)


for _name, _count in _CAST.items():
    for _key in _AUTOCAST.values():
        _register_autocast(_name, _count, _key)
for _name in ("pool", "attend", "attend_backward"):
    _register_vmap(_name, _packed)
_register_vmap("route", _packed_or_counted)
