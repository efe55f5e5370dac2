"""Which config an operation runs with: explicit > memory > user cache > shipped > the backend's default.

Of the cache, the result of the very key; else, "near", that of another number of heads and batch rows: tiles are sized
by what a head does, and a model is tuned with few of its heads. A deterministic problem's key has no such number.

Nothing here measures. What is found is kept in memory: a process that has used a config keeps to it, unless it tunes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from sparsemoc.backends import Backend, Problem
from sparsemoc.backends.files import cache_folder
from sparsemoc.backends.protocol import Operation, Tunable
from sparsemoc.tuning.key import Environment, Key, environment_of, key_of
from sparsemoc.tuning.outcome import config_of
from sparsemoc.tuning.store import Store

#: Where a config came from, the first that has one. "memory" was tuned in this process.
Source = Literal["explicit", "memory", "cache", "near", "shipped", "default"]
#: Most batch rows times heads that are looked up.
_MOST_ROWS = 1 << 16


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
    # It serves calls under other limits too.
    problem = replace(problem, options=replace(problem.options, max_workspace=None))
    for values, source in _known(environment, key):
        try:
            config = config_of(backend, problem, values)
        except Exception:  # noqa: BLE001  whatever the config's class raises: a foreign entry is a miss
            continue
        if _fits(backend, problem, operation, config):
            return Resolved(config, source)
    return _DEFAULT


def _known(environment: Environment, key: Key) -> Iterator[tuple[dict[str, Any], Source]]:
    """Yield the fields of the configs that serve a key, the best first."""
    from sparsemoc.tuning import shipped  # here, for a process that imports and does not call

    store = Store()
    if (cached := store.load(environment, key)) is not None:
        yield cached.config, "cache"
    for rows in _near_rows(key.rows):
        if (cached := store.load(environment, key._replace(rows=rows))) is not None:
            yield cached.config, "near"
            break
    for values in shipped.load(environment.architecture, environment.backend, key):
        yield values, "shipped"


def _near_rows(rows: int) -> list[int]:
    """Return the other powers of two, the nearest first, of two as near the larger; none for 0."""
    others = [1 << bit for bit in range(_MOST_ROWS.bit_length()) if rows and 1 << bit != rows]
    return sorted(others, key=lambda other: (max(other, rows) // min(other, rows), -other))


def _fits(backend: Backend, problem: Problem, operation: Operation, config: Any) -> bool:
    """Return whether a config can run a problem, as far as the backend's cost model tells."""
    return not isinstance(backend, Tunable) or backend.estimate(problem, operation, config).reason is None
