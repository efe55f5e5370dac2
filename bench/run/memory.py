"""The peak memory of one call beyond what is there before it, its result included.

On the CPU the process is asked: the heap's free pages go back to Linux, the mark VmHWM is set back, and read after the
call. What earlier calls keep for the next ones is not counted. On CUDA it is what torch has handed out.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine

_CPU = "VmHWM of a call, set back before it, above VmRSS, result included; what earlier calls keep is not counted"
_CUDA = "torch.cuda.max_memory_allocated of a call above memory_allocated, result included"


def measured(call: Callable[[], Any], device: str) -> dict[str, Any] | None:
    """Return the field `memory` of a record; None where the system does not tell."""
    return _cuda(call) if device == "cuda" else _cpu(call)


def release(device: str) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def _cuda(call: Callable[[], Any]) -> dict[str, Any]:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return {"peak_extra_bytes": peak, "how": _CUDA}


def _cpu(call: Callable[[], Any]) -> dict[str, Any] | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = machine.status("VmRSS")
    except (OSError, AttributeError):
        return None
    result = call()
    peak = machine.status("VmHWM") - before
    del result
    return {"peak_extra_bytes": max(peak, 0), "how": _CPU}
