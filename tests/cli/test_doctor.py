from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import sparsemoc as moc
from sparsemoc.cli import doctor
from sparsemoc.tuning.store import Store
from tests.cli.conftest import RunCommand
from tests.tuning.samples import ENVIRONMENT, KEY, outcome


def test_lists_every_backend_device_and_version(run: RunCommand) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert f"sparsemoc {moc.__version__}" in result.output
    for name in (
        *moc.available_backends(),
        "cpu",
        "numpy",
        "numba",
        "torch",
        "cupy-cuda12x",
        "matplotlib",
        "sample clips",
    ):
        assert name in result.output
    assert importlib.metadata.version("numpy") in result.output


def test_tells_what_the_cache_of_tuned_results_holds(
    run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", str(tmp_path / "cache"))
    assert Store().save(ENVIRONMENT, KEY, outcome(tile=1)) is None
    (Store().folder / ENVIRONMENT.digest / "entries" / "0.json").write_text("{")
    assert "1 results, 1 damaged files" in _words(run("doctor").output)
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "/proc/nowhere")
    told = _words(run("doctor").output)
    assert "0 results" in told
    assert "not writable: /proc/nowhere" in told


def _words(table: str) -> str:
    """Return the text of a table whose cells go over several lines."""
    return re.sub(r"[│\s]+", " ", table)


def test_says_why_a_backend_is_absent(run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_backends", lambda: {"reference": None, "numba": "numba is not installed"})
    result = run("doctor")
    assert "numba is not installed" in result.output


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert doctor.version_of("av", "demo") == (None, 'not installed; extra "demo"')
    assert doctor.version_of("numpy", None) == (None, "not installed; it comes with sparsemoc")


def test_says_how_to_get_an_extra(run: RunCommand) -> None:
    text = 'Extras: pip install "sparsemoc[demo]", or pip install ".[demo]" in a checkout.'
    assert text in run("doctor").output


def test_the_packages_are_those_of_pyproject() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, _, extra in doctor.PACKAGES:
        wanted = project["dependencies"] if extra is None else extras[extra]
        known = any(re.split(r"[\[<>=]", line)[0] == name for line in wanted)
        assert known or name in ("llvmlite", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc"), name  # with numba, CuPy


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
