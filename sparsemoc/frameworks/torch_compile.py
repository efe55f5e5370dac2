"""Calls under torch.compile: specs and their like go into the graph as text, tensors and layouts as they are.

The compiler guards on the text, so an equal spec compiles nothing anew. The function runs in plain Python on tensors
without data, once for each graph: its checks raise there, and what it leaves in the graph are the custom operators.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import guard_scalar

from sparsemoc.frameworks import torch_open, torch_tree
from sparsemoc.frameworks.told import restored
from sparsemoc.frameworks.traced import FUNCTIONS
from sparsemoc.spec.errors import SpecError, UnsupportedError
from sparsemoc.spec.plan import Plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream


def call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of `FUNCTIONS` as one node of a graph. The compiler reads these lines: they are kept simple."""
    given = dict(zip(_PARAMETERS[name], args, strict=False))
    given.update(kwargs)
    told: dict[str, Any] = {}
    for argument, value in given.items():
        if value is None:
            continue  # no value of a graph; `restored` knows
        if isinstance(value, RoutingSpec):
            told[argument + "__spec"] = value.line
        elif isinstance(value, Stream):
            told[argument + "__stream"] = value.line
        elif isinstance(value, Plan):
            told[argument + "__plan"] = value.line
        elif isinstance(value, (tuple, list)) and len(value) > 0 and isinstance(value[0], Stream):
            told[argument + "__streams"] = [one.line for one in value]
        elif argument == "backend" and not isinstance(value, str):
            raise UnsupportedError(
                "backend must be a name under torch.compile, got an object. Hint: register it by an entry point."
            )
        elif argument == "scale" and isinstance(value, (int, float)):
            told[argument] = guard_scalar(value)  # a symbol in dynamic graphs; a factor of the kernels is a number
        elif argument == "scale":
            raise SpecError("scale must be a number under torch.compile, got an array. Hint: scale=float(value).")
        elif argument == "key_lengths" and isinstance(value, (tuple, list)):
            told[argument] = torch.tensor(value)  # its numbers may be symbols: new ones compile nothing anew
        elif argument in ("key_lengths", "seed") and isinstance(value, (np.ndarray, np.generic)):
            told[argument] = torch.as_tensor(value)
        elif argument in ("options", "config"):
            fields = [(field, getattr(value, field)) for field in type(value).__dataclass_fields__]
            told[argument + "__value"] = repr((type(value).__module__, type(value).__qualname__, fields))
        else:
            told[argument] = value
    return _TRACED[name](**told)


def _reading(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes what `call` tells."""

    @wraps(function)
    def read(**told: Any) -> Any:
        given = restored(function, told)
        return torch_open.call(told, given) if torch_open.serves(name, given) else function(**given)

    return read


#: The compiler calls these as they are, and does not read them.
_TRACED = {name: torch._dynamo.nonstrict_trace(_reading(name, function)) for name, function in FUNCTIONS.items()}
_PARAMETERS = {name: tuple(inspect.signature(function).parameters) for name, function in FUNCTIONS.items()}

# What a tree of the graph holds in its place is found while the graph is made.
torch._dynamo.assume_constant_result(torch_tree.plan_of)
