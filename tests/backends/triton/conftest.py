"""The kernels in Triton's interpreter, on the CPU: set before they are imported, for Triton reads it then."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import numpy as np
import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")

#: Why the folder cannot run here, nothing if it can. A run of the suite on a GPU sets TRITON_INTERPRET=0.
MISSING = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING or os.environ["TRITON_INTERPRET"] != "1" else []


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Let NumPy, which interprets the kernels, pass over what a GPU passes over: infinities, NaN, and log2 of 0."""
    with np.errstate(all="ignore"):
        yield
