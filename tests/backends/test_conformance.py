"""Every property of the conformance suite on every backend."""

from __future__ import annotations

import hypothesis
import pytest

from sparsemoc.testing import conformance


@pytest.mark.parametrize("name", conformance.PROPERTIES)
def test_conformance(any_backend: str, name: str, examples: int) -> None:
    derandomize = hypothesis.settings().derandomize
    conformance.PROPERTIES[name].run(any_backend, examples=examples, derandomize=derandomize)


def test_run_takes_a_backend_object(any_backend: str, examples: int) -> None:
    from sparsemoc.backends.registry import get_backend

    conformance.run(get_backend(any_backend), examples=max(1, min(5, examples // 3)), names=("forward", "backward"))
