"""The suite accepts the oracle and rejects every planted wrong implementation."""

from __future__ import annotations

import pytest

from sparsemoc.testing import conformance
from sparsemoc.testing.checks import MismatchError
from sparsemoc.testing.oracle_implementation import OracleImplementation
from sparsemoc.testing.planted import Planted, variants


@pytest.mark.parametrize("name", conformance.PROPERTIES)
def test_the_oracle_is_accepted(name: str) -> None:
    conformance.PROPERTIES[name].run(OracleImplementation(), examples=100)


@pytest.mark.parametrize("variant", variants())
def test_the_planted_is_rejected(variant: type[Planted]) -> None:
    with pytest.raises(MismatchError) as caught:
        conformance.PROPERTIES[variant.caught_by].run(variant(), examples=200, shrink=False)
    assert any("problem = Problem(" in note for note in caught.value.__notes__), (
        "the failure does not say how to rebuild"
    )


def test_there_are_many_and_each_says_what_is_wrong() -> None:
    assert len(variants()) >= 18
    assert all(variant.__doc__ for variant in variants())
    assert {variant.caught_by for variant in variants()} <= set(conformance.PROPERTIES)
