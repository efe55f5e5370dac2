"""The GPU that a problem runs on, as the problem's own library knows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec

from sparsemoc.backends.protocol import Problem
from sparsemoc.backends.triton.kernels.tile import INTERPRET

#: What JAX calls are lowered for, where that is not the GPU at hand.
_TARGET: ContextVar[int | None] = ContextVar("target", default=None)


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
