"""What a result depends on besides the code: processor, versions, commit, time."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparsemoc._version import __version__
from sparsemoc.backends import get_backend
from sparsemoc.backends.processor import cores, processor

__all__ = ["ROOT", "commit", "cores", "facts", "processor", "slug", "status", "versions"]

ROOT = Path(__file__).resolve().parents[1]


def slug() -> str:
    """Return the machine as the name of a folder."""
    plain = re.sub(r"\((r|tm)\)", "", processor().lower())
    return f"{re.sub(r'[^a-z0-9]+', '-', plain).strip('-')}-{cores()}-cores"


def commit() -> str | None:
    """Return the commit, with "-dirty" where tracked files differ from it; None outside a checkout."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    # Results are what is being written.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def status(field: str) -> int:
    """Return a field of /proc/self/status, of this process, in bytes.

    Raises:
        OSError: there is none.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def versions(*more: str) -> dict[str, str | None]:
    """Return the versions that results depend on, and those of more distributions; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "sparsemoc": __version__}
    for name in ("numpy", "numba", "torch", *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def facts(backend: str, threads: int) -> dict[str, Any]:
    """Return the fields of a record that say where and when it was measured."""
    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": threads,
        "backend_version": get_backend(backend).version(),
        "versions": versions(),
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
