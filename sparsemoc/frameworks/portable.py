"""An execution as one line of text, and back: a graph of a compiler holds tensors and words, no Python objects.

The line tells everything, so that a graph kept on disk means the same in the next process. What text cannot tell, a
backend or a config that is an object of the caller's own, is named by a number that no other process has.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from typing import Any

from sparsemoc.backends import Backend, Options, Problem, get_backend
from sparsemoc.frameworks import Framework
from sparsemoc.frameworks.execution import Execution
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.plan import Plan, plan_of_line

_PROCESS = uuid.uuid4().hex
_OBJECTS: dict[str, Any] = {}


@dataclass(frozen=True)
class Static:
    """What a line tells: a problem without its batch, dtype and device, and who computes it.

    Attributes:
        plan: the compiled spec.
        backend: who computes.
        config: its tunables: None, an object, or the fields of its own kind.
        rest: further fields of the problem.
    """

    plan: Plan
    backend: Backend
    config: Any
    rest: dict[str, Any]

    def execution(self, framework: Framework, like: Any) -> Execution:
        """Return the execution for arrays with the batch, the dtype and the device of `like`."""
        problem = problem_like(framework, like, plan=self.plan, **self.rest).shown_to(self.backend.capabilities)
        config = self.config
        if isinstance(config, dict):
            config = type(self.backend.default_config(problem))(**config)
        return Execution(framework, self.backend, problem, config)


def problem_like(framework: Framework, like: Any, **rest: Any) -> Problem:
    """Return a problem with the batch, the dtype and the device of `like`, and with the rest of its fields."""
    return Problem(
        framework=framework.NAME,
        device=framework.device(like).partition(":")[0],
        dtype=framework.dtype(like),
        batch=like.shape[0],
        views=framework.views(like),
        **rest,
    )


def line_of(run: Execution) -> str:
    """Return an execution as a line; `static_of` reads it."""
    problem = run.problem
    sizes = (problem.heads, problem.kv_heads, problem.head_dim, problem.v_head_dim)
    return json.dumps(
        [
            problem.plan.line,
            _backend_word(run.backend),
            _config_word(run),
            [int(size) for size in sizes],  # a symbol of a compiler becomes its number: kernels are made for one
            problem.backward,
            problem.deterministic,
            None if problem.options == Options() else asdict(problem.options),
        ]
    )


@lru_cache(maxsize=1024)
def static_of(line: str) -> Static:
    """Return what a line tells.

    Raises:
        UnsupportedError: it names an object of another process.
    """
    plan, backend, config, sizes, backward, deterministic, options = json.loads(line)
    names = ("heads", "kv_heads", "head_dim", "v_head_dim")
    wishes = {"backward": backward, "deterministic": deterministic, "options": Options(**(options or {}))}
    return Static(
        plan_of_line(plan),
        _object(backend) if "#" in backend else get_backend(backend),
        _object(config) if isinstance(config, str) else config,
        dict(zip(names, sizes, strict=True)) | wishes,
    )


def _backend_word(backend: Backend) -> str:
    try:
        if get_backend(backend.name) is backend:
            return backend.name
    except UnsupportedError:  # an object of the caller's own, of a name that is not in the table
        pass
    return _named(backend)


def _config_word(run: Execution) -> Any:
    if run.config is None:
        return None
    if is_dataclass(run.config) and type(run.config) is type(run.backend.default_config(run.problem)):
        return asdict(run.config)  # type: ignore[arg-type]  # an object, not a class
    return _named(run.config)


def _named(value: Any) -> str:
    name = f"#{_PROCESS}:{id(value)}"
    _OBJECTS[name] = value  # kept, so that no other object takes its number
    return name


def _object(name: str) -> Any:
    if name not in _OBJECTS:
        raise UnsupportedError(
            "attention: a compiled graph must not outlive the backend or config object that it was made with, got one "
            "of another process. Hint: name the backend, and register it by an entry point."
        )
    return _OBJECTS[name]
