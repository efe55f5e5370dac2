"""What a run depends on besides the code: device, driver, versions, commit, command, time."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime

from bench import machine
from bench.gpu.report import Report, Row

#: The name of the row by which the facts come from the process that looked.
NAME = "facts"


def look(report: Report) -> None:
    """Send the facts of the device as a row: a process of its own looks, so that the one that waits holds no GPU."""
    import torch

    from sparsemoc.backends import available_backends

    cuda = torch.cuda.is_available()
    found = {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {machine.processor()}",
        "device_memory": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "driver": driver() if cuda else None,
        "versions": {
            **machine.versions(),
            "triton": _version("triton"),
            "cupy": _version("cupy"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if cuda else None,
        },
        "cuda": cuda,
        "backend_absent": available_backends()[report.setup.backend],
    }
    report.check("facts", NAME, True, **found)


def _version(module: str) -> str | None:
    try:
        return str(__import__(module).__version__)
    except ImportError:
        return None


def driver() -> str | None:
    """Return the version of the GPU's driver; None where nvidia-smi does not tell."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(told.stdout.split()), None) if told.returncode == 0 else None


def of_run(found: Row, arguments: Sequence[str], quick: bool) -> Row:
    """Return the fields that every record of a run has beside those of its row."""
    device = {name: value for name, value in found.items() if name not in ("cuda", "backend_absent")}
    return {
        **device,
        "commit": machine.commit(),
        "command": shlex.join(["python", "-m", "bench.gpu", *arguments]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
    }


def file_name(about: Row) -> str:
    """Return the name of a run's file: its device and date."""
    device = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    moment = about["time"].replace(":", "").partition("+")[0]
    return f"{device}-{moment}Z.jsonl"
