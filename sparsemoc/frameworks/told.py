"""What a call tells of its arguments where only text, numbers and arrays can go, and how that is read again.

An argument that goes as text has a suffix, `spec__spec`, that says how it is read; what is None is not told.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from sparsemoc.spec.plan import plan_of_line
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream


def restored(function: Callable[..., Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call. What has no default and is not told is None."""
    parameters = inspect.signature(function).parameters.items()
    given: dict[str, Any] = {name: None for name, one in parameters if one.default is one.empty}
    for name, value in told.items():
        argument, _, kind = name.partition("__")
        given[argument] = _READERS[kind](value) if kind else value
    return given


def _value(text: str) -> Any:
    """Return a dataclass of plain fields, Options or a config, from its text."""
    module, kind, values = ast.literal_eval(text)
    return getattr(import_module(module), kind)(**dict(values))


def _streams(lines: Iterable[str]) -> tuple[Stream, ...]:
    return tuple(Stream.from_json(line) for line in lines)


_READERS: dict[str, Callable[[Any], Any]] = {
    "spec": RoutingSpec.from_json,
    "stream": Stream.from_json,
    "streams": _streams,
    "plan": plan_of_line,
    "value": _value,
}
