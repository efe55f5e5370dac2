"""The GPU that a problem runs on, as the problem's own library knows it, or the CPU that stands in for one."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from sparsemoc.backends.cupy.config import EMULATED
from sparsemoc.backends.cupy.emulator import emulated
from sparsemoc.backends.processor import processor
from sparsemoc.backends.protocol import Hardware, Problem


def capability(problem: Problem) -> int:
    """Return the compute capability, 90 for sm_90; 0 for the CPU that stands in for a GPU."""
    return EMULATED if problem.device != "cuda" else _capability(_current(problem.framework))


def hardware(problem: Problem) -> Hardware:
    """Return the GPU, its compute capability, and the version of the driver."""
    if problem.device != "cuda":
        return Hardware(processor(), "emulated")
    return _hardware(_current(problem.framework))


def described() -> str:
    """Return the versions and the device that results depend on."""
    if emulated():
        return f"emulated on {processor()}"
    cupy = import_module("cupy")
    found = _hardware(int(cupy.cuda.runtime.getDevice()))
    major, minor = cupy.cuda.nvrtc.getVersion()
    return f"cupy {cupy.__version__}, NVRTC {major}.{minor}, {found.device}, {found.architecture}"


def _current(framework: str) -> int:
    """Return the number of the device that a library makes arrays on."""
    if framework == "torch":
        return int(import_module("torch").cuda.current_device())
    return int(import_module("cupy").cuda.runtime.getDevice())


@cache
def _capability(device: int) -> int:
    return int(import_module("cupy").cuda.Device(device).compute_capability)


@cache
def _hardware(device: int) -> Hardware:
    runtime = import_module("cupy").cuda.runtime
    name = runtime.getDeviceProperties(device)["name"].decode()
    number = int(runtime.driverGetVersion())
    return Hardware(name, f"sm_{_capability(device)}", f"CUDA {number // 1000}.{number % 1000 // 10}")
