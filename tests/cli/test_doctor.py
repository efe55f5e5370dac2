from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from typing import Any

import pytest

import sparsemoc as moc
from sparsemoc.cli import doctor
from tests.cli.conftest import RunCommand


def test_lists_every_backend_device_and_version(run: RunCommand) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert f"sparsemoc {moc.__version__}" in result.output
    for name in (*moc.available_backends(), "cpu", "numpy", "numba", "torch", "matplotlib", "sample clips"):
        assert name in result.output
    assert importlib.metadata.version("numpy") in result.output


def test_says_why_a_backend_is_absent(run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_backends", lambda: {"reference": None, "numba": "numba is not installed"})
    result = run("doctor")
    assert "numba is not installed" in result.output


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert doctor.version_of("av", "demo") == (None, "not installed; pip install 'sparsemoc[demo]'")


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.gpus() == ([], "nvidia-smi is not on the PATH: no NVIDIA driver is installed")


def test_gpus_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 0, "NVIDIA H200, 143771 MiB, 570.1\n", "")
    monkeypatch.setattr(shutil, "which", lambda name: "nvidia-smi")

    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    assert doctor.gpus() == (["NVIDIA H200, 143771 MiB, 570.1"], None)


def test_version(run: RunCommand) -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert moc.__version__ in result.output
