"""The GPU that a problem runs on, as the problem's own library knows it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from sparsemoc.backends.protocol import Hardware, Problem
from sparsemoc.backends.triton.kernels.tile import INTERPRET

#: What JAX calls are lowered for, where that is not the GPU at hand.
_TARGET: ContextVar[int | None] = ContextVar("target", default=None)
#: Where the driver tells its version, on Linux.
_VERSION = Path("/proc/driver/nvidia/version")


@contextmanager
def lowering_for(capability: int) -> Iterator[None]:
    """Trace JAX calls for GPUs of a compute capability, 90 for sm_90, whether or not there is one here."""
    token = _TARGET.set(capability)
    try:
        yield
    finally:
        _TARGET.reset(token)


def capability(problem: Problem) -> int:
    """Return the compute capability, 90 for sm_90; the interpreter is as good as any."""
    if problem.device != "cuda":
        return 90
    if problem.framework == "jax":
        return _TARGET.get() or int(import_module("jax").devices("cuda")[0].compute_capability.replace(".", ""))
    major, minor = import_module("torch").cuda.get_device_capability()
    return 10 * int(major) + int(minor)


def hardware(problem: Problem) -> Hardware:
    """Return the GPU, its compute capability, and the version of the driver."""
    if problem.device != "cuda":
        return Hardware("interpreter", "interpreter")
    if problem.framework == "jax":
        target = _TARGET.get()
        return _of_jax() if target is None else Hardware(f"sm_{target}", f"sm_{target}")
    return _of_torch(import_module("torch").cuda.current_device())


@cache
def _of_torch(device: int) -> Hardware:
    cuda = import_module("torch").cuda
    major, minor = cuda.get_device_capability(device)
    return Hardware(str(cuda.get_device_name(device)), f"sm_{major}{minor}", driver())


@cache
def _of_jax() -> Hardware:
    device = import_module("jax").devices("cuda")[0]
    return Hardware(str(device.device_kind), f"sm_{device.compute_capability.replace('.', '')}", driver())


@cache
def driver(file: Path = _VERSION) -> str:
    """Return the version of NVIDIA's driver; where the system does not tell it, that of its CUDA; "" without one."""
    try:
        words = file.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        words = []
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan ...": the first word with dots and digits.
    numbers = [word for word in words if "." in word and word.replace(".", "").isdigit()]
    return numbers[0] if numbers else _cuda_of_driver()


def _cuda_of_driver() -> str:
    number = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except OSError:
        return ""
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def name(problem: Problem) -> str:
    """Return the name of the GPU."""
    if problem.framework == "jax":
        return str(import_module("jax").devices("cuda")[0].device_kind)
    return str(import_module("torch").cuda.get_device_name())


def described() -> str:
    """Return what results depend on beside Triton: torch or, where that finds no GPU, JAX, and the GPU."""
    torch = import_module("torch") if find_spec("torch") is not None else None
    if torch is not None and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"torch {torch.__version__}, {torch.cuda.get_device_name()}, sm_{major}{minor}"
    if torch is not None and INTERPRET.value:
        return f"torch {torch.__version__}, interpreted"
    jax = import_module("jax")
    device = jax.devices()[0]
    return f"jax {jax.__version__}, {device.device_kind}"
