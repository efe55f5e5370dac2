"""Every section in a process of its own: one that breaks the GPU's context, or hangs, takes no other along."""

from __future__ import annotations

import importlib
import multiprocessing
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.gpu.report import Report, Row, Setup, row

#: Lines of a traceback that a row keeps.
LINES = 6


@dataclass(frozen=True)
class Task:
    """A function to call in another process.

    Attributes:
        section: whose rows it sends.
        function: "module:name"; called with a `Report` and the arguments.
        setup: how it runs.
        arguments: by keyword, whatever can be pickled.
    """

    section: str
    function: str
    setup: Setup
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def case(self) -> str:
        """What tells it from the other tasks of its section."""
        return ", ".join(str(value) for value in self.arguments.values())


def run(tasks: Sequence[Task], workers: int, limit_s: float) -> Iterator[Row]:
    """Run tasks, some at a time, and yield their rows as they come.

    Args:
        tasks: in the order in which they begin.
        workers: most processes at a time.
        limit_s: seconds after which what still runs is ended, and what has not begun is left out.
    """
    waiting, running = list(tasks), dict[Connection, tuple[Task, Any]]()
    deadline = time.monotonic() + limit_s
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < workers:
                pipe, process = _start(waiting[0])
                running[pipe] = waiting.pop(0), process
            for ready in wait(list(running), max(0.0, deadline - time.monotonic())):
                assert isinstance(ready, Connection), "nothing else is waited for"
                yield from _received(ready, running)
        for task, _ in running.values():
            yield row("failure", task.section, task.case, "time", reason=f"ended after {limit_s:.0f} s, its limit")
        for task in waiting:
            yield row("skip", task.section, task.case, "time", reason=f"the {limit_s:.0f} s of its section were over")
    finally:
        for pipe, (_, process) in running.items():
            process.kill()
            process.join()
            pipe.close()


def _start(task: Task) -> tuple[Connection, Any]:
    # A GPU's context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, task))
    process.start()
    theirs.close()  # so that the end of the process closes the pipe
    return ours, process


def _received(pipe: Connection, running: dict[Connection, tuple[Task, Any]]) -> Iterator[Row]:
    """Yield a row of a process, or what its end says."""
    task, process = running[pipe]
    try:
        received: Row = pipe.recv()
    except EOFError:
        process.join()
        pipe.close()
        del running[pipe]
        if process.exitcode:
            reason = f"its process ended with exit code {process.exitcode}"
            yield row("failure", task.section, task.case, "process", reason=reason)
    else:
        yield received


def _work(pipe: Connection, task: Task) -> None:
    """Call the function of a task; whatever it raises is a row."""
    try:
        module, _, name = task.function.partition(":")
        getattr(importlib.import_module(module), name)(
            Report(pipe.send, task.section, task.setup), **task.arguments
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  a section that breaks must not stop the others
        reason = f"{type(error).__name__}: {str(error).strip()}"
        told = traceback.format_exc().strip().splitlines()[-LINES:]
        pipe.send(row("failure", task.section, task.case, type(error).__name__, reason=reason, detail={"last": told}))
    finally:
        pipe.close()
