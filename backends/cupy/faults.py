"""What kernels report of the data of a call, raised on the host without making any call wait.

Each machine has one word of uint32 (4,), {code, number of the source, value, where}. After the launches of a call it
is copied to the host behind them; the next call on the machine looks at the copies that have arrived. Nothing is copied
and nothing looked at while a CUDA graph is captured: what a replay reports shows at the next call outside of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from sparsemoc.backends.cupy.arrays import HostCopy
from sparsemoc.backends.cupy.machine import Machine, source_number
from sparsemoc.backends.cupy.sources import FOLDER
from sparsemoc.backends.protocol import Array, Problem
from sparsemoc.spec.errors import LayoutError, UnsupportedError

#: The codes of faults.cuh: their names there, and what they say.
CODES = {
    1: ("FAULT_CHUNK", "layout.selected must hold chunks of the plan or -1, got chunk {value} in row {where}"),
}


class _Pending(NamedTuple):
    call: str
    copy: HostCopy


@dataclass
class _Watch:
    """A machine's word, and its copies under way, oldest first."""

    machine: Machine
    word: Array
    pending: deque[_Pending] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def copy(self, call: str) -> None:
        with self.lock:
            self.pending.append(_Pending(call, self.machine.copy_to_host(self.word)))

    def look(self, *, wait: bool) -> None:
        """Raise what the copies that have arrived hold; `wait` for all."""
        with self.lock:
            while self.pending:
                call, copy = self.pending[0]
                if wait:
                    copy.wait()
                elif not copy.done():
                    return
                self.pending.popleft()
                if copy.values[0]:
                    # All copies under way hold this fault too: the first is kept until it is cleared.
                    self.pending.clear()
                    self.machine.clear(self.word)
                    raise LayoutError(_text(call, [int(value) for value in copy.values]))


_WATCHES: dict[Machine, _Watch] = {}
_LOCK = threading.Lock()


@contextmanager
def watched(machine: Machine, operation: str, problem: Problem) -> Iterator[Array]:
    """Yield the word that the launches of a call are given as `fault`; copy it to the host when they are enqueued.

    With `Options(checked=True)` the call waits for its own copy.

    Raises:
        LayoutError: an earlier call on the machine, or with `checked` this one, met a fault; the text names the call.
        UnsupportedError: the machine's first call is captured in a CUDA graph.
    """
    capturing = machine.capturing()
    if not capturing:
        poll(machine)
    watch = _watch_of(machine, operation, capturing)
    yield watch.word
    if capturing:
        return
    watch.copy(f"{operation} on {problem}")
    if problem.options.checked:
        watch.look(wait=True)


def poll(machine: Machine) -> None:
    """Raise what finished calls on a machine have reported; wait for none.

    Raises:
        LayoutError: see `watched`.
    """
    if machine in _WATCHES:
        _WATCHES[machine].look(wait=False)


def synchronize() -> None:
    """Wait for all calls of the backend, on every device's current stream, and raise what any of them has reported.

    Kernels cannot raise: a layout that breaks a rule in its data shows at the next call, or here.

    Raises:
        LayoutError: see `watched`.
    """
    for watch in list(_WATCHES.values()):
        watch.copy("an earlier call")  # replays of CUDA graphs leave no copy of their own
        watch.look(wait=True)


def _watch_of(machine: Machine, operation: str, capturing: bool) -> _Watch:
    with _LOCK:
        if machine not in _WATCHES:
            if capturing:  # the word would lie in the graph's memory, and be cleared by each replay alone
                raise UnsupportedError(
                    f"{operation}: the first call on a device cannot be captured in a CUDA graph. "
                    "Hint: make the call once before the capture."
                )
            _WATCHES[machine] = _Watch(machine, machine.zeros((4,), "int32"))
        return _WATCHES[machine]


def _text(call: str, words: list[int]) -> str:
    code, source, value, where = words
    _, rule = CODES[code]
    place = _sources().get(source % 2**32, "a kernel")
    return (
        f"{call}: {rule.format(value=value, where=where)} (found by {place}). It was taken as -1. "
        "Hint: Layout.validate() checks a layout, and Options(checked=True) each call's."
    )


@cache
def _sources() -> dict[int, str]:
    return {source_number(path.stem): path.name for path in FOLDER.glob("*.cu")}
