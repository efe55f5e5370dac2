"""Progress of a run of several stages, one line each, with what it took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

#: Tells how much of a stage's total is done.
Advance = Callable[[float], None]


class Stages:
    """The bars of a run. Use as a context manager around it."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        )

    def __enter__(self) -> Stages:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.tasks:
            self._bars.stop()
        else:  # nothing to keep: not even the empty line that Progress.stop adds where it cannot draw
            self._bars.live.transient = True
            self._bars.live.stop()

    @contextmanager
    def stage(self, text: str, total: float | None = None) -> Iterator[Advance]:
        """Show a stage until its block ends; without a total the bar only says that it is running.

        A stage that fails leaves no line: the error says what it was.
        """
        task = self._bars.add_task(text, total=total)
        try:
            yield lambda done: self._bars.update(task, completed=done)
        except BaseException:
            self._bars.remove_task(task)
            raise
        self._bars.update(task, total=total or 1, completed=total or 1)
