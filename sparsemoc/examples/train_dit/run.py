"""A run: each model trained in turn, with a log, checkpoints, and an orderly end on Ctrl-C."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sparsemoc.examples.train_dit import checkpoint
from sparsemoc.examples.train_dit.errors import CheckpointError
from sparsemoc.examples.train_dit.footage import SCENES, Footage
from sparsemoc.examples.train_dit.settings import Settings
from sparsemoc.examples.train_dit.trainer import Record, Trainer


class Stopped(Exception):  # noqa: N818  # no error: the user asked for it
    """Ctrl-C came, and what was done is in the checkpoint."""


def check_folder(folder: Path, modes: Sequence[str], resume: bool) -> None:
    """Raise CheckpointError where a new run would overwrite an older one, or there is nothing to resume."""
    found = [checkpoint.path_of(folder, mode) for mode in modes if checkpoint.path_of(folder, mode).exists()]
    if found and not resume:
        raise CheckpointError(
            f"train_dit: --out must hold no earlier run, got {found[0]}. Hint: --resume goes on with it, another --out "
            "begins anew."
        )
    if resume and not found:
        raise CheckpointError(
            f"train_dit: --resume needs a checkpoint in --out, got none in {folder}. Hint: leave --resume out."
        )


def read_footage(settings: Settings, console: Console) -> Footage:
    """Decode the clips, with a bar."""
    with _bars(console) as bars:
        task = bars.add_task("decode the clips", total=len(SCENES), note="")
        return Footage(settings, lambda count: bars.update(task, completed=count))


def train(trainer: Trainer, folder: Path, console: Console, resume: bool) -> None:
    """Train a model to its last step.

    Writes {mode}.pt every few steps and at the end, and {mode}.jsonl, one line for each step.

    Raises:
        Stopped: after Ctrl-C; the step that ran was finished and saved.
        CheckpointError: a checkpoint that cannot be used.
    """
    path, settings = checkpoint.path_of(folder, trainer.mode), trainer.settings
    if resume and path.exists():
        trainer.load(checkpoint.load(path, trainer.mode, settings))
    log_path = folder / f"{trainer.mode}.jsonl"
    with log_path.open("w") as log, _bars(console) as bars, _interruption() as interrupted:
        log.writelines(map(_line, trainer.records))  # lines after the checkpoint were of steps that come again
        task = bars.add_task(trainer.mode, total=settings.steps, completed=trainer.step, note="")
        while not trainer.done:
            record = trainer.train_step()
            log.write(_line(record))
            bars.update(task, advance=1, note=_note(trainer))
            stop = interrupted()
            if stop or trainer.done or trainer.step % settings.validate_every == 0:
                log.flush()
                checkpoint.save(path, trainer.state(), settings)
            if stop and not trainer.done:
                raise Stopped(f"stopped after {trainer.step} of {settings.steps} steps of {trainer.mode}")


def _note(trainer: Trainer) -> str:
    validation = next(record["validation"] for record in reversed(trainer.records) if "validation" in record)
    chunk = "" if trainer.chunk_size is None else f", chunks of {trainer.chunk_size}"
    return f"loss {trainer.records[-1]['loss']:.3f}, held out {validation:.3f}{chunk}"


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of a step; a second one comes through at once. Yields whether there was one."""
    seen: list[Any] = []

    def note(*_: object) -> None:
        seen.append(True)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
