"""What the backend needs, looked for before anything heavy is imported."""

from __future__ import annotations

import ctypes
import importlib.util

from sparsemoc.backends.cupy.emulator import emulated
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.host_compiler import compiler

#: Oldest GPUs with asynchronous copies and bfloat16 products, and the first CuPy with NVRTC's wheels and bfloat16.
LEAST_CAPABILITY, LEAST_CUPY = 80, 14
_EMULATE = "Hint: SPARSEMOC_CUPY_EMULATE=1, set before Python starts, runs the kernels on the CPU, for tests"
_INSTALL = 'Hint: pip install "sparsemoc[cupy-cuda12]" or "sparsemoc[cupy-cuda13]", by the CUDA of the driver'
#: Of the driver's interface.
_MAJOR, _MINOR = 75, 76


def missing() -> str | None:
    """Return what is missing, or None. The driver is asked before CuPy, which takes a second to load."""
    if emulated():
        return _no_compiler()
    return _no_device() or _no_cupy()


def _no_compiler() -> str | None:
    try:
        compiler()
    except KernelError as error:
        return str(error)
    return None


def _no_device() -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return f"there is no NVIDIA driver: libcuda.so.1 is not found. {_EMULATE}"
    found = _capabilities(driver)
    if not found:
        return f"the NVIDIA driver finds no device. {_EMULATE}"
    if max(found) < LEAST_CAPABILITY:
        listed = ", ".join(f"sm_{capability}" for capability in found)
        return f"needs a GPU of sm_{LEAST_CAPABILITY} or newer, finds {listed}. {_EMULATE}"
    return None


def _capabilities(driver: ctypes.CDLL) -> list[int]:
    """Return the compute capability of each device, 90 for sm_90."""
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [10 * _attribute(driver, _MAJOR, index) + _attribute(driver, _MINOR, index) for index in range(count.value)]


def _attribute(driver: ctypes.CDLL, which: int, device: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value


def _no_cupy() -> str | None:
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed. {_INSTALL}"
    import cupy

    if int(cupy.__version__.split(".")[0]) < LEAST_CUPY:
        return f"needs CuPy {LEAST_CUPY} or newer, finds {cupy.__version__}. {_INSTALL}"
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # noqa: BLE001  it depends on how the library is absent
        return f"CuPy {cupy.__version__} finds no NVRTC: {type(error).__name__}. {_INSTALL}"
    return None
