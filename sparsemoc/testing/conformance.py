"""The conformance suite: every property that a backend owes, with the problems it is tried on.

from sparsemoc.testing import conformance
conformance.run("numba")                      # or an object that is a sparsemoc.backends.Backend
conformance.run("numba", framework="torch")   # the same problems in torch tensors

@pytest.mark.parametrize("name", conformance.PROPERTIES)
def test_conformance(name):
    conformance.PROPERTIES[name].run("numba", examples=50)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase

from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.testing import checks, properties, properties_layout, tolerance
from sparsemoc.testing.checks import expect
from sparsemoc.testing.implementations import ApiImplementation, Implementation
from sparsemoc.testing.problems import DATA, Problem
from sparsemoc.testing.strategies import GENERIC, partial_anchors, problems

#: Data whose numbers stay in range, so that sums of results may be compared.
_CALM = ("normal", "integers", "equal", "duplicates", "offset")
#: For gradients: huge queries on huge keys leave nothing to compare.
_SMOOTH = tuple(name for name in DATA if name != "huge queries")
_TIES = ("equal", "duplicates", "integers", "signed zeros")
_SMALL = 2**11

#: The least share of rows of generic data that must be decidable, and the least rows that make a share.
DECIDABLE, ROWS = 0.99, 1000


@dataclass(frozen=True)
class Property:
    """A property, the problems it is tried on, and its part of the examples asked for."""

    name: str
    check: Callable[[Implementation, Problem], None]
    problems: Any
    share: float = 1.0

    def run(
        self,
        backend: Any,
        *,
        examples: int = 100,
        shrink: bool = True,
        derandomize: bool = True,
        framework: str | None = None,
        device: str | None = None,
    ) -> None:
        """Try the property on drawn problems.

        Args:
            backend: a backend's name, a Backend, or an `Implementation`.
            framework, device: of the arrays, as for `ApiImplementation`.
            examples: problems to draw, times the property's share.
            shrink: whether a failure is shrunk to a small one.
            derandomize: whether each run draws the same problems.

        Raises:
            MismatchError: the property is broken; a note holds a line that rebuilds the problem.
        """
        implementation = as_implementation(backend, framework, device)
        phases = (Phase.explicit, Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

        @hypothesis.settings(
            max_examples=max(1, round(examples * self.share)),
            deadline=None,
            derandomize=derandomize,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @hypothesis.given(problem=self.problems)
        def trial(problem: Problem) -> None:
            self.apply(implementation, problem)

        trial()

    def apply(self, implementation: Implementation, problem: Problem) -> None:
        """Check one problem; a refusal is no failure, a failure says how to rebuild the problem."""
        try:
            with np.errstate(all="ignore"):
                self.check(implementation, problem)
        except UnsupportedError:
            hypothesis.reject()
        except Exception as failure:
            failure.add_note(f"{implementation.name}, {self.name}: {problem.repro()}")
            raise


def as_implementation(backend: Any, framework: str | None = None, device: str | None = None) -> Implementation:
    """Return an Implementation as it is; put a backend or its name behind the API, with arrays of a framework."""
    if all(hasattr(backend, name) for name in ("forward", "backward", "attend", "pool")) and not hasattr(
        backend, "route"
    ):
        found: Implementation = backend
        return found
    return ApiImplementation(backend, framework=framework, device=device)


def _table(*rows: Property) -> dict[str, Property]:
    return {row.name: row for row in rows}


#: Every property by name.
PROPERTIES: dict[str, Property] = _table(
    Property("selection", checks.check_selection, problems()),
    Property("ties", checks.check_selection, problems(data=_TIES)),
    Property("NaN", checks.check_selection, problems(data=("nan key", "nan query"))),
    Property("padded selection", checks.check_selection, problems(padding=True, data=("normal", "integers"))),
    Property("padded cover", checks.check_selection, problems(padding=True, anchor=partial_anchors())),
    Property("forward", checks.check_forward, problems()),
    Property("backward", checks.check_backward, problems(data=_SMOOTH)),
    Property("dropout", checks.check_dropout, problems(dropout=True)),
    Property("padding", properties.check_padding, problems(padding=True, pairs=2**13), 0.5),
    Property("batch", properties.check_batch, problems(batches=(2, 3), pairs=2**13), 0.5),
    Property("batch order", properties.check_batch_order, problems(packed=False, batches=(2, 3), pairs=2**13), 0.3),
    Property("packing", properties.check_packing, problems(packed=True, pairs=2**13), 0.5),
    Property("heads", properties.check_heads, problems(pairs=2**13), 0.3),
    Property("presentation", properties.check_presentation, problems(data=_CALM, pairs=_SMALL), 0.3),
    Property("full attention", properties.check_full, problems(data=(*_CALM, "huge", "nan key")), 0.5),
    Property("more anchors", properties.check_more_anchors, problems(data=(*_CALM, "nan key"), pairs=2**13), 0.5),
    Property("empty rows", properties.check_empty, problems(pairs=_SMALL), 0.3),
    Property("merge", properties.check_merge, problems(data=_CALM, pairs=2**13), 0.5),
    Property("outside", properties.check_outside, problems(data=_CALM, pairs=2**13), 0.5),
    Property("pool", properties_layout.check_pool, problems(pairs=2**13), 0.5),
    Property("transpose", properties_layout.check_transpose, problems(pairs=2**13), 0.5),
    Property("counts", properties_layout.check_counts, problems(pairs=2**13), 0.3),
    Property("determinism", properties.check_determinism, problems(pairs=2**13), 0.3),
)


def run(
    backend: Any,
    *,
    examples: int = 100,
    names: Iterable[str] | None = None,
    shrink: bool = True,
    derandomize: bool = True,
    framework: str | None = None,
    device: str | None = None,
) -> None:
    """Try every property, or those named, and that the suite itself can tell. Arguments as for `Property.run`.

    Raises:
        MismatchError: a property is broken, or less than 99 % of the rows of generic data are decidable.
    """
    check_decidable()
    for name in PROPERTIES if names is None else names:
        PROPERTIES[name].run(
            backend,
            examples=examples,
            shrink=shrink,
            derandomize=derandomize,
            framework=framework,
            device=device,
        )


def check_decidable(examples: int = 100) -> None:
    """The suite's own duty: at least 99 % of the rows of generic data must be decidable.

    Raises:
        MismatchError: they are not, or there were too few rows to say.
    """
    found, total = decidable_rows(examples)
    expect(total >= ROWS, f"generic data gave only {total} rows")
    expect(found >= DECIDABLE * total, f"only {found} of {total} rows of generic data are decidable")


def decidable_rows(examples: int) -> tuple[int, int]:
    """Return how many rows of drawn generic problems are decidable, and how many have a choice to make at all."""
    counts: list[tuple[int, int]] = []

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(problem=problems(data=GENERIC))
    def draw(problem: Problem) -> None:
        counts.extend(tolerance.decidable(sample) for sample in problem.samples())

    draw()
    return sum(found for found, _ in counts), sum(total for _, total in counts)
