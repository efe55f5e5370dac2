"""What the documents claim: the Python of README and docstrings runs, the changelog knows the version."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest

import sparsemoc

ROOT = Path(__file__).resolve().parents[2]


def scripts() -> list[str]:
    """Return one script for each Python block of the README: a block without an import continues the ones before."""
    found: list[str] = []
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL):
        starts_anew = re.search(r"^(import|from) ", block, flags=re.MULTILINE)
        found.append(block if starts_anew or not found else found[-1] + block)
    return found


def absent(script: str) -> list[str]:
    """Return the optional frameworks that a script imports and this environment lacks; CuPy needs a GPU."""
    named = re.findall(r"^(?:import|from) (torch|jax|cupy|diffusers|transformers)\b", script, flags=re.MULTILINE)
    lacking = {name for name in named if importlib.util.find_spec(name) is None}
    return sorted(lacking | ({"a GPU"} if "cupy" in named and find_library("cuda") is None else set()))


def cases() -> list[object]:
    """Return the scripts as test cases; one that needs an absent framework is marked as skipped."""
    return [
        pytest.param(
            script,
            marks=[pytest.mark.skip(reason=f"needs {', '.join(absent(script))}")] if absent(script) else [],
            id=f"block{number}",
        )
        for number, script in enumerate(scripts(), 1)
    ]


def test_readme_has_python_blocks() -> None:
    assert scripts()


@pytest.mark.parametrize("script", cases())
def test_python_blocks_of_the_readme_run(script: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(sparsemoc.__file__).parents[1])}  # the package under test
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_example_of_attention_runs() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(sparsemoc.attention, globs={})
    assert len(test.examples) == 5
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_example_of_the_package_runs() -> None:
    block = re.search(r"(?:^(?: {4}.*)?\n)+", (sparsemoc.__doc__ or "").partition("\n")[2], flags=re.MULTILINE)
    assert block is not None
    names: dict[str, Any] = {}
    exec(textwrap.dedent(block[0]), names)
    assert names["out"].shape == names["q"].shape


def test_changelog_names_the_version() -> None:
    assert f"## [{sparsemoc.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
