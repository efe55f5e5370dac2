"""The kernels of test_emulation.cu, compiled for the CPU, as functions of NumPy arrays."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.host_compiler import FLAGS, compiler
from sparsemoc.backends.cupy.sources import FOLDER

THREADS = 64
SHARED = 4096
Array = NDArray[Any]


class Library:
    """A library of kernels, called by their names."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def __call__(
        self, name: str, *arguments: Array | int, grid: tuple[int, int, int] = (1, 1, 1), threads: int = THREADS
    ) -> str | None:
        """Run a kernel; return what went wrong."""
        function = self.library[f"run_{name}"]
        function.restype = ctypes.c_char_p
        values = [x if isinstance(x, int) else ctypes.c_void_p(x.ctypes.data) for x in arguments]
        failure = function(*grid, threads, SHARED, *values)
        return None if failure is None else failure.decode()

    def reverse(self, on: bool) -> None:
        """Let threads run from the last to the first, or in order."""
        self.library.emulate_in_reverse(int(on))


@cache
def library() -> Library:
    """Compile the kernels, with the flags that the backend gives and every warning an error."""
    try:
        command = [*compiler(), *FLAGS, "-Wall", "-Wextra", "-Werror"]
    except KernelError as error:
        pytest.skip(str(error))
    command += [f"-DTHREADS={THREADS}", f"-DSHARED_BYTES={SHARED}", f"-I{FOLDER}", "-x", "c++"]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.so"
        source = Path(__file__).with_name("test_emulation.cu")
        done = subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return Library(made)


def random(seed: int = 0) -> np.random.Generator:
    """Return a generator of the same numbers every time."""
    return np.random.default_rng(seed)
