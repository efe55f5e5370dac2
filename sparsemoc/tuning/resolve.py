"""Which config an operation runs with: explicit > memory > user cache > shipped > the backend's default.

Nothing here measures. What is found is kept in memory: a process that has used a config keeps to it, unless it tunes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from sparsemoc.backends import Backend, Problem
from sparsemoc.backends.protocol import Operation, Tunable
from sparsemoc.tuning.key import Environment, Key, environment_of, key_of
from sparsemoc.tuning.outcome import config_of
from sparsemoc.tuning.store import Store, cache_folder

#: Where a config came from, the first that has one. "memory" was tuned in this process.
Source = Literal["explicit", "memory", "cache", "shipped", "default"]


class Resolved(NamedTuple):
    """A config, and where it came from; None with "default" is the backend's own."""

    config: Any
    source: Source


#: By the folder of the cache, too: a process that turns to another finds what is there.
_MEMORY: dict[tuple[str, Environment, Key], Resolved] = {}
_DEFAULT = Resolved(None, "default")


def resolve(backend: Backend, problem: Problem, operation: Operation, explicit: Any = None) -> Resolved:
    """Return the config of an operation on a problem.

    Args:
        backend, problem: as the operation will be given them.
        operation: which.
        explicit: what the caller asks for; it is obeyed.
    """
    if explicit is not None:
        return Resolved(explicit, "explicit")
    environment, key = environment_of(backend, problem), key_of(problem, operation)
    place = cache_folder(), environment, key
    found = _MEMORY.get(place)
    if found is None:
        found = _MEMORY[place] = _looked_up(backend, problem, operation, environment, key)
    # A limit on memory is no part of the key: the default keeps to it, another config may not.
    limited = found.config is not None and problem.options.max_workspace is not None
    return found if not limited or _fits(backend, problem, operation, found.config) else _DEFAULT


def remember(environment: Environment, key: Key, config: Any) -> None:
    """Keep a config that was tuned in this process: it comes before every other but an explicit one."""
    _MEMORY[cache_folder(), environment, key] = Resolved(config, "memory")


def forget() -> None:
    """Empty the memory: the next call reads the user's cache again."""
    _MEMORY.clear()


def _looked_up(
    backend: Backend, problem: Problem, operation: Operation, environment: Environment, key: Key
) -> Resolved:
    from sparsemoc.tuning import shipped  # here, for a process that imports and does not call

    # It serves calls under other limits too.
    problem = replace(problem, options=replace(problem.options, max_workspace=None))
    cached = Store().load(environment, key)
    found: list[tuple[dict[str, Any], Source]] = [] if cached is None else [(cached.config, "cache")]
    found += [(values, "shipped") for values in shipped.load(environment.architecture, environment.backend, key)]
    for values, source in found:
        try:
            config = config_of(backend, problem, values)
        except Exception:  # noqa: BLE001  whatever the config's class raises: a foreign entry is a miss
            continue
        if _fits(backend, problem, operation, config):
            return Resolved(config, source)
    return _DEFAULT


def _fits(backend: Backend, problem: Problem, operation: Operation, config: Any) -> bool:
    """Return whether a config can run a problem, as far as the backend's cost model tells."""
    return not isinstance(backend, Tunable) or backend.estimate(problem, operation, config).reason is None
