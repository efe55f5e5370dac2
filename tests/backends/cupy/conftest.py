"""What the tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from sparsemoc.backends.cupy.emulator import in_reverse


@pytest.fixture(params=["in order", "in reverse"])
def either_order(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the threads of emulated kernels in order, and once more the other way round: results must be the same."""
    with in_reverse() if request.param == "in reverse" else nullcontext():
        yield
