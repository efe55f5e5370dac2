"""What identifies a tuned result: the environment that it was measured in, and the key of a problem in it.

Lengths count by the next power of two, so that problems alike share a result. A deterministic problem is known without
its batch and heads: its config, and so its rounding, must not depend on them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sparsemoc.backends import Backend, Problem
from sparsemoc.backends.protocol import Hardware, Operation, Tunable
from sparsemoc.spec.plan import Plan
from sparsemoc.spec.routing import Block

#: What of a backend's folder is its kernels.
_SOURCES = (".py", ".cu", ".cuh", ".h", ".hpp")


class Environment(NamedTuple):
    """Where a result holds: it is worth nothing to another device, driver, version, or state of the kernels.

    Attributes:
        backend: its name.
        versions: what `Backend.version` says.
        device, architecture, driver: see `Hardware`.
        sources: hash of the backend's source files.
    """

    backend: str
    versions: str
    device: str
    architecture: str
    driver: str
    sources: str

    @property
    def digest(self) -> str:
        """A name for it, 16 hexadecimal digits."""
        return _digest(self._asdict())


class Key(NamedTuple):
    """Which problems share a result.

    Attributes:
        operation: method of the backend.
        dtype, precision: of the arrays, and of float32 products.
        head_dim, v_head_dim, group: exact; group is the number of query heads to a key head.
        token_causal: whether no query sees a later key.
        unit: tokens to a routing unit.
        slots: routes to a query, at most.
        chunk: keys of a chunk, on average; anchored: anchored keys of a query, on average; next powers of two.
        q_tokens, k_tokens: of a sample on average, next powers of two.
        rows: batch times heads, next power of two; 0 where the problem is deterministic.
        anchors: engine of the anchored pairs that was asked for.
        gradients: whether the call is part of one that computes gradients.
    """

    operation: str
    dtype: str
    precision: str
    head_dim: int
    v_head_dim: int
    group: int
    token_causal: bool
    unit: int
    slots: int
    chunk: int
    anchored: int
    q_tokens: int
    k_tokens: int
    rows: int
    anchors: str
    gradients: bool

    @property
    def digest(self) -> str:
        """A name for it, 16 hexadecimal digits."""
        return _digest(self._asdict())


_ENVIRONMENTS: dict[tuple[int, Hardware], tuple[Backend, Environment]] = {}


def environment_of(backend: Backend, problem: Problem) -> Environment:
    """Return the environment in which a backend runs a problem."""
    hardware: Hardware = backend.hardware(problem) if _tells(type(backend)) else _host()  # type: ignore[attr-defined]
    place = id(backend), hardware
    if place not in _ENVIRONMENTS:
        found = Environment(backend.name, backend.version(), *hardware, sources_of(backend))
        _ENVIRONMENTS[place] = backend, found  # the backend too, so that no other object takes its number
    return _ENVIRONMENTS[place][1]


def key_of(problem: Problem, operation: Operation) -> Key:
    """Return the key of an operation on a problem."""
    plan, (chunk, anchored, q_tokens, k_tokens) = problem.plan, _lengths(problem.plan)
    return Key(
        operation,
        problem.dtype,
        problem.options.precision,
        problem.head_dim,
        problem.v_head_dim,
        problem.group,
        plan.spec.causal == "token",
        plan.spec.unit.n if isinstance(plan.spec.unit, Block) else 1,
        plan.slots,
        chunk,
        anchored,
        q_tokens,
        k_tokens,
        0 if problem.deterministic else _bucket(problem.batch * problem.heads),
        problem.options.anchors,
        problem.backward,
    )


def _lengths(plan: Plan) -> tuple[int, int, int, int]:
    """Return chunk, anchored, q_tokens and k_tokens of a key; kept on the plan, which calls share."""
    kept: tuple[int, int, int, int] | None = plan.__dict__.get("_tuning_lengths")
    if kept is None:
        samples = plan.samples
        keys, queries = plan.k_tokens, plan.q_tokens
        anchored = sum(one.anchor_rectangles.pairs(one.reach, one.token_causal) for one in samples)
        counts = keys / sum(one.chunks for one in samples), anchored / queries, queries / len(samples)
        chunk, seen, mean = (_bucket(count) for count in counts)
        kept = plan.__dict__["_tuning_lengths"] = chunk, seen, mean, _bucket(keys / len(samples))
    return kept


def _bucket(count: float) -> int:
    """Return the next power of two, 0 for 0."""
    return 1 << max(0, -int(-count // 1) - 1).bit_length() if count > 0 else 0


@cache
def _tells(kind: type) -> bool:
    """Return whether backends of a class are Tunable: asked once, for it takes longer than all the rest."""
    return issubclass(kind, Tunable)


def sources_of(backend: Backend) -> str:
    """Return the hash of a backend's source files: of the package of its class, or of the module if that stands alone.

    The classes that it derives from count too. What has no files, as a class of a notebook, adds nothing.
    """
    found = hashlib.sha256()
    for name in dict.fromkeys(kind.__module__ for kind in type(backend).__mro__):
        for shown, file in _files_of(name):
            # A package in an archive has names of files and no files.
            with suppress(OSError):
                found.update(shown.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def _files_of(name: str) -> list[tuple[str, Path]]:
    """Return the source files that belong to a module, each with the name that it has there."""
    module = sys.modules.get(name)
    place = getattr(module, "__file__", None)
    if place is None:
        return []
    file, package = Path(place), sys.modules.get(getattr(module, "__package__", None) or "")
    # A file that stands among other backends is one by itself.
    if package is None or package.__name__ in ("", "sparsemoc.backends"):
        return [(file.name, file)]
    files = sorted(one for one in file.parent.rglob("*") if one.suffix in _SOURCES)
    return [(one.relative_to(file.parent).as_posix(), one) for one in files]


@cache
def _host() -> Hardware:
    """Return the hardware of a backend that does not tell: the machine's kind."""
    return Hardware(platform.processor() or platform.machine(), platform.machine())


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
