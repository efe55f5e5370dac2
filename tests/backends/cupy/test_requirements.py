"""What keeps the backend from running here, with a hint, found out without loading CuPy where that can be."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sparsemoc.backends.cupy import host_compiler, requirements
from sparsemoc.backends.cupy.requirements import missing
from tests.backends.cupy.fake_cupy import installed


class Driver:
    """NVIDIA's driver, as far as it is asked; each device by its compute capability."""

    def __init__(self, *capabilities: int, broken: bool = False) -> None:
        self.capabilities, self.broken = capabilities, broken

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 100 if self.broken else 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: int) -> int:  # noqa: N802
        value._obj.value = {75: self.capabilities[device] // 10, 76: self.capabilities[device] % 10}[which]
        return 0


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("SPARSEMOC_CUPY_EMULATE", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(75, 90))
    with installed() as module:
        yield module


def test_a_gpu_with_cupy_and_nvrtc_is_all_that_is_needed(cupy: Any) -> None:
    assert missing() is None


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        (Driver(broken=True), "the NVIDIA driver finds no device. Hint: SPARSEMOC_CUPY_EMULATE=1"),
        (Driver(), "the NVIDIA driver finds no device. Hint: "),
        (Driver(61, 75), "needs a GPU of sm_80 or newer, finds sm_61, sm_75. Hint: SPARSEMOC_CUPY_EMULATE=1"),
    ],
)
def test_devices_that_cannot_run_kernels_are_named(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, driver: Driver, text: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert str(missing()).startswith(text)


def test_without_a_driver_cupy_is_not_asked_for(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setattr(requirements, "_no_cupy", lambda: pytest.fail("CuPy was asked for"))
    assert str(missing()).startswith(
        "there is no NVIDIA driver: libcuda.so.1 is not found. Hint: SPARSEMOC_CUPY_EMULATE"
    )


def test_an_absent_or_old_cupy_is_told_with_what_to_install(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy, "__version__", "13.6.0")
    assert str(missing()).startswith("needs CuPy 14 or newer, finds 13.6.0. Hint: pip install")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert str(missing()).startswith('CuPy is not installed. Hint: pip install "sparsemoc[cupy-cuda12]" or ')


def test_a_cupy_without_nvrtc_is_told(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("The requested function is not supported")

    monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", fail)
    assert str(missing()).startswith("CuPy 14.2.0 finds no NVRTC: AssertionError. Hint: pip install")


def test_the_emulator_needs_a_compiler_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMOC_CUPY_EMULATE", "1")
    monkeypatch.setattr(requirements, "_no_device", lambda: pytest.fail("a device was asked for"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(host_compiler, "COMPILERS", ("no-such-compiler",))
    assert str(missing()).startswith("no C++ compiler to run kernels on the CPU: none of no-such-compiler found. Hint:")
    monkeypatch.setenv("CXX", sys.executable)
    assert missing() is None
