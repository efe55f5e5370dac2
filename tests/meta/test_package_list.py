"""The packages in pyproject.toml are the packages in the tree: a forgotten one is absent from the wheel in silence."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
LINKS = {"sparsemoc/spec": "../spec", "sparsemoc/backends": "../backends"}


def files_by_package() -> dict[str, list[str]]:
    """Return the files of every package of the tree, by package. Links are not followed.

    A folder without Python files holds data of the package above it: its files have their path from there.
    """
    found: dict[str, list[str]] = {}
    for top, package in (("sparsemoc", "sparsemoc"), ("spec", "sparsemoc.spec"), ("backends", "sparsemoc.backends")):
        for folder, _, files in os.walk(ROOT / top):
            owner = Path(folder)
            if not files or "__pycache__" in owner.parts:
                continue
            while not any(owner.glob("*.py")):
                owner = owner.parent
            name = ".".join([package, *owner.relative_to(ROOT / top).parts])
            found.setdefault(name, []).extend((Path(folder) / file).relative_to(owner).as_posix() for file in files)
    return found


def test_packages_are_the_folders_of_the_tree() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(files_by_package())


def test_every_package_has_an_init() -> None:
    assert [package for package, files in files_by_package().items() if "__init__.py" not in files] == []


def test_every_data_file_is_package_data() -> None:
    patterns = SETUPTOOLS["package-data"]
    forgotten = [
        f"{package}: {file}"
        for package, files in files_by_package().items()
        for file in files
        if not file.endswith(".py") and not any(fnmatch.fnmatch(file, each) for each in patterns.get(package, ()))
    ]
    assert forgotten == []


def test_every_package_data_pattern_matches_a_file() -> None:
    found = files_by_package()
    idle = [
        f"{package}: {pattern}"
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        if not fnmatch.filter(found[package], pattern)
    ]
    assert idle == []


@pytest.mark.parametrize(("link", "target"), LINKS.items())
def test_links_point_to_the_top_level_folders(link: str, target: str) -> None:
    assert os.readlink(ROOT / link) == target


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.parametrize("link", LINKS)
def test_links_are_links_in_git(link: str) -> None:
    listed = subprocess.run(["git", "ls-files", "-s", link], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout.startswith("120000 "), f"git holds {listed.stdout!r}"
