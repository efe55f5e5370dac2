"""Public functions as torch's compiler sees them: one call each, whose Python runs as it is while a graph is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")

#: Name -> function, for `torch_compile`, which is imported when torch's compiler first meets one of them.
FUNCTIONS: dict[str, Callable[..., Any]] = {}


def traced_whole(function: Callable[_Given, _Returned]) -> Callable[_Given, _Returned]:
    """Return the function, to which torch.compile does not descend: checks and plans are no business of a graph.

    The names of its positional parameters must be those by which callers may pass them too.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    FUNCTIONS[name] = function

    @wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Returned:
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_dynamo_compiling():
            from sparsemoc.frameworks import torch_compile

            return torch_compile.call(name, args, kwargs)  # type: ignore[no-any-return]  # what the function returns
        return function(*args, **kwargs)

    return call
