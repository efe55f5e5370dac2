"""The machine that runs named problems: its device, threads, architecture, driver and versions."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from bench import machine
from sparsemoc.spec.errors import UnsupportedError


def device() -> str:
    """Return "cuda" where torch finds a device, else "cpu"."""
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check(wanted: str) -> None:
    """Raise unless there is such a device.

    Raises:
        UnsupportedError: there is none.
    """
    if wanted == "cuda" and device() != "cuda":
        raise UnsupportedError("bench.run: --device cuda needs a CUDA device that torch finds, got none.")


def threads(kind: str) -> int:
    """Return the threads of either side, and hold torch to them."""
    from sparsemoc.backends.numba.threads import thread_count

    count = thread_count()
    if kind == "cpu" and importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(count)
    return count


def facts(kind: str, count: int) -> dict[str, Any]:
    """Return the field `machine` of a record: device, architecture, cores, threads, driver."""
    if kind == "cuda":
        import torch

        from bench.gpu.facts import driver

        name, architecture = torch.cuda.get_device_name(), "sm_{}{}".format(*torch.cuda.get_device_capability())
        version = driver() or ""
    else:
        from sparsemoc.backends.numba.hardware import hardware

        name, architecture, version = hardware()
    return {
        "device": name,
        "architecture": architecture,
        "cores": machine.cores(),
        "threads": count,
        "driver": version,
    }


def slug(kind: str) -> str:
    """Return the machine as the name of a folder."""
    if kind == "cpu":
        return machine.slug()
    return re.sub(r"[^a-z0-9]+", "-", str(facts(kind, 0)["device"]).lower()).strip("-")


def versions() -> dict[str, str | None]:
    """Return the versions that results depend on; None for what is not installed."""
    return machine.versions("triton", "flash-attn")
