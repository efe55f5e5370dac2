"""Kernels compiled for the CPU: by a C++ compiler, over emulation.hpp, with a function to run each of them."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from sparsemoc.backends.cupy import cache as disk
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.machine import Kernel
from sparsemoc.backends.cupy.sources import FOLDER, Parameter, digest, place_of, signature, signatures

#: Compilers that are looked for where CXX names none.
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-std=c++17", "-O2", "-DEMULATED", "-shared", "-fPIC")

#: What ctypes passes for each kind of parameter.
C_TYPES: dict[str, type[ctypes._SimpleCData[int] | ctypes._SimpleCData[float] | ctypes.c_void_p]] = {
    "pointer": ctypes.c_void_p,
    "int": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "i64": ctypes.c_int64,
    "float": ctypes.c_float,
}


def compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler: CXX, else the first of `COMPILERS` that is installed.

    Raises:
        KernelError: there is none.
    """
    named = os.environ.get("CXX")
    words = tuple(shlex.split(named)) if named else next(((one,) for one in COMPILERS if shutil.which(one)), ())
    if not words or shutil.which(words[0]) is None:
        wanted = f"CXX={named}" if named else f"none of {', '.join(COMPILERS)}"
        raise KernelError(
            f"no C++ compiler to run kernels on the CPU: {wanted}{'' if not named else ' is not'} found. "
            "Hint: install g++, or set CXX to a compiler of C++17."
        )
    return words


def runner(kernel: Kernel) -> Callable[..., bytes | None]:
    """Return the function that runs a kernel: (grid x, y, z, threads, shared, *arguments) -> the error, or None.

    Raises:
        KernelError: there is no compiler, or the source does not compile.
    """
    return _runner(replace(kernel, blocks_per_sm=1))


def switch(kernel: Kernel) -> Callable[[int], None]:
    """Return what sets the order in which the threads of a kernel run: 0 from the first, 1 from the last."""
    function: Callable[[int], None] = _library(replace(kernel, name="", blocks_per_sm=1)).emulate_in_reverse
    return function


@cache
def _runner(kernel: Kernel) -> Callable[..., bytes | None]:
    # All kernels of a source share a library for the same macros.
    function = getattr(_library(replace(kernel, name="")), f"run_{kernel.name}")
    kinds = [C_TYPES[parameter.kind] for parameter in signature(kernel.file, kernel.name)]
    function.argtypes = [ctypes.c_int] * 5 + kinds
    function.restype = ctypes.c_char_p
    run: Callable[..., bytes | None] = function
    return run


@cache
def _library(kernel: Kernel) -> ctypes.CDLL:
    command = (*compiler(), *FLAGS, *(f"-D{name}={value}" for name, value in kernel.macros.items()), f"-I{FOLDER}")
    made_by = _version(command[0]), platform.machine()
    key = disk.key_of("host", digest(kernel.file), *command, *made_by, _unit(kernel.file))
    (path,) = disk.kept(key, ["so"], lambda: [_compile(kernel, command)])
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(
            f"{kernel.file}.cu, compiled for the CPU, cannot be loaded: {error}. "
            "Hint: set SPARSEMOC_KERNEL_CACHE_DIR to a folder from which code may be run."
        ) from error


def _compile(kernel: Kernel, command: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="sparsemoc-") as name:
        source, made = Path(name) / "unit.cpp", Path(name) / "unit.so"
        source.write_text(_unit(kernel.file))
        done = subprocess.run(
            [*command, str(source), "-o", str(made)], capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            raise KernelError(
                f"{kernel.file}.cu does not compile for the CPU.\n{shlex.join(command)}\n{done.stderr.strip()}"
            )
        return made.read_bytes()


def _unit(file: str) -> str:
    """Return the text that is compiled: the source, and a function that C can call for each of its kernels."""
    runners = (_runner_text(name, parameters) for name, parameters in signatures(file).items())
    return "\n".join([f'#include "{place_of(file)}"', *runners, ""])


def _runner_text(name: str, parameters: tuple[Parameter, ...]) -> str:
    taken = "".join(f", {parameter.type} {parameter.name}" for parameter in parameters)
    given = ", ".join(parameter.name for parameter in parameters)
    # The five own names start with an underscore: a kernel may have a parameter `threads` or `shared`.
    return (
        f'extern "C" const char* run_{name}(int _x, int _y, int _z, int _threads, int _shared{taken}) {{\n'
        f"    return emulation::run(_x, _y, _z, _threads, _shared, [=] {{ {name}({given}); }});\n"
        "}"
    )


@cache
def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", check=False)
    return done.stdout
