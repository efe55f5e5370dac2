"""The configs that an operation can be tuned over, and whether it can be tuned at all on the arrays at hand."""

from __future__ import annotations

from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

import numpy as np

from sparsemoc.backends import Problem
from sparsemoc.spec.traced import is_traced
from sparsemoc.tuning.work import Work


def cannot_tune(work: Work) -> str | None:
    """Return why an operation cannot be tuned on the arrays at hand, or None."""
    default = work.backend.default_config(work.problem)
    if not is_dataclass(default):
        return f"configs of {work.backend.name} are no dataclasses, so that none could be kept"
    if len(configs_of(work)) == 1:
        return "nothing to tune: the search space holds the default alone"
    arrays = [x for x in _flat(work.arguments) if hasattr(x, "dtype") and hasattr(x, "shape")]
    for array in arrays:
        if is_traced(array) or type(array).__module__.startswith(("torch._subclasses", "torch.fx", "torch._functorch")):
            return f"the arrays hold no data: {type(array).__name__}. Hint: make a first call outside of the compiler"
    if _capturing(work.problem):
        return "a CUDA graph is captured. Hint: make a first call before the capture"
    # lse is -inf where a query sees no key, and is told by its place in a result.
    if not all(_finite(array) for array in arrays):
        return "the arrays hold NaN or infinity, so that results cannot be judged"
    return None


def _capturing(problem: Problem) -> bool:
    """Return whether calls on a problem go into a CUDA graph."""
    if problem.framework == "cupy":
        return bool(import_module("cupy").cuda.get_current_stream().is_capturing())
    on_gpu = problem.framework == "torch" and problem.device == "cuda"
    return on_gpu and bool(import_module("torch").cuda.is_current_stream_capturing())


def _flat(values: Any) -> list[Any]:
    """Return the arrays whose numbers enter the result: of a forward's result only out, of a layout its selection."""
    found = []
    for value in values:
        if hasattr(value, "lse"):
            found.append(value.out)
        elif hasattr(value, "selected"):
            found += [value.selected, value.key_lengths]
        else:
            found.append(value)
    return found


def _finite(array: Any) -> bool:
    """Return whether an array holds finite numbers only; of any library, on its device."""
    if "float" not in str(array.dtype):
        return True
    with np.errstate(invalid="ignore"):
        return bool((abs(array) < float("inf")).all())


def configs_of(work: Work) -> list[Any]:
    """Return the configs of the search space, the default first, each once."""
    found: list[Any] = []
    for config in (
        work.backend.default_config(work.problem),
        *work.backend.search_space(work.problem, work.operation),
    ):
        if config not in found:
            found.append(config)
    return found
