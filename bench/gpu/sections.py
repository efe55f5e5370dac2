"""The sections in order of importance, with the time that each may take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from bench.gpu.processes import Task
from bench.gpu.report import Setup

#: Seconds in which a process begins, about, and bounds on those of one property of the conformance suite after that.
START_SECONDS, LEAST_PROPERTY, MOST_PROPERTY = 8.0, 3.0, 40.0
#: The part of a limit that is shared out: the last example of a property may compile for long.
SHARED_OUT = 0.5
#: Most processes at a time: each holds a GPU's context and the arrays of a setting.
MOST_WORKERS = 12


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Attributes:
        name: in rows and for --only.
        function: "module:name", called with a `Report`.
        least_s: seconds that must be left for it to begin.
        most_s: seconds after which it is ended.
        timed: whether it times anything: then nothing runs beside it.
    """

    name: str
    function: str
    least_s: float
    most_s: float
    timed: bool = True


#: First, all at a time, what compiles ahead and what compares; then what is timed, one after another.
SECTIONS = (
    Section("prepare", "bench.gpu.prepare:prepare", 10, 200, timed=False),
    Section("determinism", "bench.gpu.exact:determinism", 10, 200, timed=False),
    Section("graphs", "bench.gpu.graphs:graphs", 10, 200, timed=False),
    Section("conformance", "bench.gpu.exact:conformance", 10, 200, timed=False),
    Section("flashmoba", "bench.gpu.flashmoba:flashmoba", 25, 100),
    Section("paper", "bench.gpu.figures:paper", 50, 130),
    Section("routed", "bench.gpu.parts:routed", 25, 100),
    Section("anchors", "bench.gpu.parts:anchors", 15, 70),
    Section("short", "bench.gpu.figures:short", 15, 90),
    Section("wan", "bench.gpu.figures:wan", 15, 70),
    Section("stages", "bench.gpu.stages:stages", 15, 70),
)
NAMES = tuple(section.name for section in SECTIONS if section.name != "prepare")


def batches(names: Sequence[str], ahead: bool) -> Iterator[list[Section]]:
    """Yield the sections that run at the same time, in order.

    Args:
        names: of the sections that are wanted.
        ahead: whether to compile ahead for those that are timed.
    """
    wanted = [one for one in SECTIONS if one.name in names or (ahead and one.name == "prepare")]
    for timed, sections in groupby(wanted, key=lambda section: section.timed):
        if timed:
            yield from ([section] for section in sections)
        else:
            yield list(sections)


def tasks(batch: Sequence[Section], wanted: Sequence[str], setup: Setup, workers: int, limit_s: float) -> list[Task]:
    """Return what a batch runs, in a process of its own each.

    Args:
        batch: sections that run at the same time.
        wanted: names of all sections of the run: those that are to be compiled ahead.
        setup: how they run.
        workers: processes at a time.
        limit_s: seconds that the batch has.
    """
    made: list[Task] = []
    for section in batch:
        arguments: list[dict[str, Any]] = [{}]
        if section.name == "prepare":
            from bench.gpu.prepare import names

            arguments = [{"name": name} for name in names(wanted, setup.quick)]
        elif section.name == "conformance":
            from sparsemoc.testing.conformance import PROPERTIES

            arguments = shared_out(list(PROPERTIES), setup, len(made), workers, limit_s)
        made += [Task(section.name, section.function, setup, one) for one in arguments]
    return made


def shared_out(
    properties: Sequence[str], setup: Setup, others: int, workers: int, limit_s: float
) -> list[dict[str, Any]]:
    """Return the arguments of the tasks of the conformance suite: a property to a process, and the seconds it has.

    With --quick one process takes all of them: starting is what takes long then.

    Args:
        properties: their names.
        setup, workers, limit_s: as for `tasks`.
        others: tasks that run before.
    """
    if setup.quick:
        return [{"names": list(properties), "seconds": 0.0}]
    turns = math.ceil((len(properties) + others) / workers)
    seconds = min(MOST_PROPERTY, max(LEAST_PROPERTY, SHARED_OUT * limit_s / turns - START_SECONDS))
    return [{"names": [name], "seconds": seconds} for name in properties]
