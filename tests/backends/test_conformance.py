"""Every property of the conformance suite on every backend."""

from __future__ import annotations

import hypothesis
import pytest

from sparsemoc.testing import conformance


@pytest.mark.parametrize("name", conformance.PROPERTIES)
def test_conformance(backend: str, name: str) -> None:
    profile = hypothesis.settings()
    conformance.PROPERTIES[name].run(backend, examples=profile.max_examples, derandomize=profile.derandomize)


def test_run_takes_a_backend_object(backend: str) -> None:
    from sparsemoc.backends.registry import get_backend

    conformance.run(get_backend(backend), examples=5, names=("forward", "backward"))
