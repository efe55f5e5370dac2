"""The choice of backends (`--backends`), the Hypothesis profiles, a cache of tuned results for the tests alone, and a
header that says what is tested."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest

import sparsemoc
from sparsemoc.backends import available_backends, get_backend
from sparsemoc.backends.cupy.cache import folder as kernel_folder


def _gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def _driver() -> bool:
    try:
        return not ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError:
        return False


# Triton reads it when its kernels are imported: without a GPU its interpreter runs them, on the CPU.
if "TRITON_INTERPRET" not in os.environ and not _gpu():
    os.environ["TRITON_INTERPRET"] = "1"
# The CUDA kernels likewise, compiled by a C++ compiler. What it makes is kept from run to run, and for every worker.
if not _driver():
    os.environ.setdefault("SPARSEMOC_CUPY_EMULATE", "1")
os.environ.setdefault("SPARSEMOC_KERNEL_CACHE_DIR", str(kernel_folder()))

# The first call of a compiled kernel takes seconds: no deadline, and slow draws are no fault.
COMMON = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("dev", COMMON, max_examples=50)
hypothesis.settings.register_profile("ci", COMMON, max_examples=100, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("nightly", COMMON, max_examples=5000, print_blob=True)
# Hypothesis itself reads --hypothesis-profile, later than this.
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")

BACKENDS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        metavar="NAMES",
        help="comma-separated backends to test; one that cannot run is an error (default: all that can)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "dtype(name): what the test computes in, where no parameter says so")
    absent = available_backends()
    named = config.getoption("--backends")
    if named is None:
        config.stash[BACKENDS] = [name for name, reason in absent.items() if reason is None]
        return
    names = [name.strip() for name in named.split(",")]
    for name in names:
        if name not in absent:
            raise pytest.UsageError(f"--backends: there is no backend {name!r}, only {', '.join(absent)}")
        if absent[name] is not None:
            raise pytest.UsageError(f"--backends: {name} cannot run here: {absent[name]}")
    config.stash[BACKENDS] = names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `any_backend` once for every backend under test, `backend` for those that take NumPy's."""
    names = metafunc.config.stash[BACKENDS]
    if "any_backend" in metafunc.fixturenames:
        metafunc.parametrize("any_backend", names)
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize(
            "backend", [name for name in names if "numpy" in get_backend(name).capabilities.frameworks]
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is computed in a dtype that the backend of the test does not take."""
    for item in items:
        given: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        name = given.get("backend") or given.get("any_backend")
        asked = [mark.args[0] for mark in item.iter_markers("dtype")] or [given.get("dtype")]
        wide = asked in (["float64"], [np.float64])
        if name is not None and wide and "float64" not in get_backend(name).capabilities.dtypes:
            item.add_marker(pytest.mark.skip(reason=f"{name} takes no float64"))


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[None]:
    """Keep what was tuned on this machine out of the tests and of the processes that they start."""
    with tempfile.TemporaryDirectory(prefix="sparsemoc-cache-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEMOC_CACHE_DIR", folder)
        yield


@pytest.fixture
def examples(any_backend: str) -> int:
    """Examples of a property: as the profile says, and a fraction where kernels for GPUs run slowly, on the CPU."""
    asked = hypothesis.settings().max_examples
    if any_backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return max(1, asked // 32)
    if any_backend == "cupy" and os.environ.get("SPARSEMOC_CUPY_EMULATE") == "1":
        return max(1, asked // 10)
    return asked


def pytest_report_header(config: pytest.Config) -> list[str]:
    chosen = config.stash[BACKENDS]
    lines = [f"sparsemoc {sparsemoc.__version__} from {os.path.dirname(sparsemoc.__file__)}, NumPy {np.__version__}"]
    for name, reason in available_backends().items():
        state = f"absent: {reason}" if reason is not None else ("tested" if name in chosen else "not chosen")
        lines.append(f"backend {name}{_library_version(name)}: {state}")
    return lines


def _library_version(backend: str) -> str:
    """Return the version of the library that a backend is named after, or nothing."""
    try:
        return f" ({backend} {importlib.metadata.version(backend)})"
    except importlib.metadata.PackageNotFoundError:
        return ""
