"""A peer: an attention that is not ours, and when it can run."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

#: Arrays or tensors by name, (1, tokens, heads, head_dim); views are welcome.
Outputs = Mapping[str, Any]
Computes = Literal["moc", "dense"]


class Unavailable(Exception):  # noqa: N818  a state of a machine, told in a record, and no mistake of anybody's
    """A peer cannot run this problem here; the text says why in one line."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An attention to be timed beside ours.

    Attributes:
        name: as it stands in records.
        computes: "moc", the pairs of the layout or of its own routes; or "dense", every pair that causality allows.
        flops: operations that one call does, two for a multiply-add.
        share: of the peak of the machine's matrix products that it may reach, to foresee its time.
        bytes: temporary memory of a call, where that is more than the size of its arrays.
        note: what a reader of its time should know, in one line.
        prepare: does what a model would do once, and returns the call that is timed. The call returns `Outputs`:
            "out" (1, queries, heads, v_head_dim); "lse" (1, heads, queries) where it has it; "dq", "dk", "dv" as
            q, k, v; "selected" (1, heads, queries, slots) where it routes by itself, -1 for none, in any order.

    Raises:
        Unavailable: from `prepare`, where it cannot run.
    """

    name: str
    computes: Computes
    flops: float
    share: float = 0.5
    bytes: int = 0
    note: str = ""
    prepare: Callable[[], Callable[[], Outputs]]


def guarded(peer: Peer, device: str) -> Peer:
    """Return a peer whose `prepare` raises nothing but Unavailable, and does not start what has no room in memory."""

    def prepare() -> Callable[[], Outputs]:
        free = free_bytes(device)
        if peer.bytes > free:
            raise Unavailable(f"needs {peer.bytes / 1e9:.1f} GB of temporary memory, {free / 1e9:.1f} GB are free")
        try:
            return peer.prepare()
        except Unavailable:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  what breaks in a peer must not break the run
            raise Unavailable(first_line(error)) from None

    return dataclasses.replace(peer, prepare=prepare)


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no text')}"


def free_bytes(device: str) -> int:
    """Return the memory that is free for a call; without an answer from the system, all that there may be."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 2**62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 2**62)


def installed(module: str, name: str | None = None) -> Any:
    """Return a module.

    Raises:
        Unavailable: it is not installed; other errors of an import are raised as they are.
    """
    if importlib.util.find_spec(module) is None:
        raise Unavailable(f"{name or module} is not installed")
    return importlib.import_module(module)


def on_cuda(device: str) -> None:
    """Raise Unavailable on any other device."""
    if device != "cuda":
        raise Unavailable("needs a CUDA device")
