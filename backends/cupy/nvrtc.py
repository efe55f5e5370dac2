"""Kernels compiled for a GPU, by NVRTC through CuPy: no driver, no toolkit, and no headers of one are needed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sparsemoc.backends.cupy import cache as disk
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.machine import Kernel
from sparsemoc.backends.cupy.sources import closure, digest, place_of

#: Of every compilation. A product and a sum become one rounding, functions need no mark to run on the device, and ptxas
#: tells what each kernel uses.
FLAGS = ("-std=c++17", "--fmad=true", "--device-as-default-execution-space", "--ptxas-options=-v")

#: Architectures whose own instructions are compiled for: the code runs on no later one.
_OWN = {90: "sm_90a"}
_USED = {
    "registers": re.compile(r"\bUsed (\d+) registers"),
    "stack": re.compile(r"\b(\d+) bytes stack frame"),
    "stores": re.compile(r"\b(\d+) bytes spill stores"),
    "loads": re.compile(r"\b(\d+) bytes spill loads"),
    "shared": re.compile(r"\b(\d+) bytes smem"),
}


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture.

    Attributes:
        path: where the cubin, a file of all kernels of the source, lies.
        registers: per thread.
        stack: bytes of the stack frame of a thread.
        spills: bytes of registers that a thread stores to and loads from memory.
        shared: bytes of static shared memory of a block.
        log: what the compiler said.
    """

    path: Path
    registers: int
    stack: int
    spills: int
    shared: int
    log: str

    @property
    def cubin(self) -> bytes:
        """The code of the kernel."""
        return self.path.read_bytes()


def version() -> tuple[int, int]:
    """Return the version of NVRTC.

    Raises:
        Exception: of CuPy's, where there is no NVRTC.
    """
    major, minor = _nvrtc().getVersion()
    return int(major), int(minor)


def arch_of(capability: int) -> str:
    """Return the architecture to compile for on a device, "sm_90a" for 90.

    Where NVRTC does not know the device's own, the latest before it of the same major version, whose code it runs too.

    Raises:
        KernelError: NVRTC knows none.
    """
    known = [int(arch) for arch in _nvrtc().getSupportedArchs()]
    fitting = [arch for arch in known if arch // 10 == capability // 10 and arch <= capability]
    if not fitting:
        raise KernelError(_unknown(f"sm_{capability}"))
    found = max(fitting)
    return _OWN.get(found, f"sm_{found}")


@cache
def compile_kernel(kernel: Kernel, arch: str) -> Compiled:
    """Return a kernel compiled for an architecture, "sm_80", "sm_90a".

    Raises:
        KernelError: NVRTC does not know the architecture, or the source does not compile.
    """
    path, log = _cubin(replace(kernel, name=""), arch)
    return Compiled(path=path, log=log, **_used(kernel, log))


@cache
def _cubin(kernel: Kernel, arch: str) -> tuple[Path, str]:
    """Return the cubin of all kernels of a source, and the compiler's log."""
    options = (*FLAGS, f"--gpu-architecture={arch}", *(f"-D{name}={value}" for name, value in kernel.macros.items()))
    key = disk.key_of("nvrtc", digest(kernel.file), str(version()), *options)
    cubin, log = disk.kept(key, ("cubin", "log"), lambda: _compile(kernel, arch, options))
    return cubin, log.read_text()


def _compile(kernel: Kernel, arch: str, options: tuple[str, ...]) -> tuple[bytes, bytes]:
    nvrtc = _nvrtc()
    if int("".join(filter(str.isdigit, arch))) not in nvrtc.getSupportedArchs():
        raise KernelError(_unknown(arch))
    (_, text), *headers = closure(kernel.file).items()
    name = str(place_of(kernel.file))
    program = nvrtc.createProgram(
        text, name, [header.encode() for _, header in headers], [included.encode() for included, _ in headers]
    )
    try:
        nvrtc.compileProgram(program, options)
        # CuPy cuts off the last byte, as if it ended a text; a byte too many does no harm.
        return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program).encode()
    except nvrtc.NVRTCError as error:
        raise KernelError(
            f"{name} does not compile for {arch} by NVRTC {'.'.join(map(str, version()))}: {error}\n"
            f"{' '.join(options)}\n{nvrtc.getProgramLog(program).strip()}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)


def _used(kernel: Kernel, log: str) -> dict[str, int]:
    """Return what ptxas says that a kernel uses."""
    # One part of the log to a kernel: it starts with the kernel's name.
    parts = re.split(r"Compiling entry function '(\w+)'", log)
    told = dict(zip(parts[1::2], parts[2::2], strict=True))
    if kernel.name not in told:
        raise KernelError(f"{kernel} is not in the compiler's log:\n{log.strip()}")
    found = {name: sum(map(int, pattern.findall(told[kernel.name]))) for name, pattern in _USED.items()}
    return {
        "registers": found["registers"],
        "stack": found["stack"],
        "spills": found["stores"] + found["loads"],
        "shared": found["shared"],
    }


def _unknown(arch: str) -> str:
    known = ", ".join(f"sm_{one}" for one in _nvrtc().getSupportedArchs())
    return (
        f"NVRTC {'.'.join(map(str, version()))} does not know {arch}, only {known}. "
        "Hint: a later CUDA does; pip install -U cupy-cuda13x[ctk]."
    )


def _nvrtc() -> Any:
    return import_module("cupy").cuda.nvrtc
