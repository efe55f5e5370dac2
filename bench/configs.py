"""Which config each operation of a call runs with, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsemoc.backends import Backend, Problem
from sparsemoc.backends.protocol import Operation
from sparsemoc.tuning.outcome import fields_of
from sparsemoc.tuning.resolve import resolve

Fields = dict[str, Any]


def used(
    backend: Backend, problem: Problem, operations: Sequence[Operation]
) -> tuple[dict[str, Fields], dict[str, str]]:
    """Return the fields of the config of each operation, and its source: see `sparsemoc.tuning.resolve`."""
    configs: dict[str, Fields] = {}
    sources: dict[str, str] = {}
    for operation in operations:
        found = resolve(backend, problem, operation)
        config = backend.default_config(problem) if found.config is None else found.config
        configs[operation], sources[operation] = fields_of(config), found.source
    return configs, sources
