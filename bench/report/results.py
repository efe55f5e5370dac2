"""What a report shows of many records: the newest of each, of one machine, and never quick ones beside full ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.report.records import Record, device, is_crossover, is_problem, median
from sparsemoc.spec.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Results:
    """The records of a report.

    Attributes:
        problems: of named problems, crossover: of the grid, cpu: of `bench.cpu`; each in order of time.
        quick: whether they are of tiny sizes, whose figures mean nothing.
        device: what they were measured on.
        replaced: how many records are older than one of the same measurement, and not shown.
        other: how many are of quick sizes where full ones are shown, or the other way round.
    """

    problems: tuple[Record, ...]
    crossover: tuple[Record, ...]
    cpu: tuple[Record, ...]
    quick: bool
    device: str
    replaced: int = 0
    other: int = 0

    @property
    def all(self) -> tuple[Record, ...]:
        """All of them."""
        return (*self.problems, *self.crossover, *self.cpu)


def choose(records: Sequence[Record], *, quick: bool = False, on: str | None = None) -> Results:
    """Return the newest records of one machine: full ones where there are any, or the quick ones where asked.

    Args:
        records: as read.
        quick: whether to take quick records although there are full ones.
        on: device whose records to take; may be None where all are of one.

    Raises:
        SpecError: there are none, or they are of several devices.
    """
    if not records:
        raise SpecError("bench.report: there are no records. Hint: python -m bench.run")
    devices = sorted({device(record) for record in records})
    if on is None and len(devices) > 1:
        raise SpecError(
            f"bench.report: records must be of one device, got those of {', '.join(devices)}. "
            f"Hint: --device {devices[0]!r}"
        )
    if on is not None and on not in devices:
        raise SpecError(f"bench.report: --device must be one of {', '.join(devices)}, got {on!r}.")
    mine = [record for record in records if device(record) == (on or devices[0])]
    quick = quick or all(record["quick"] for record in mine)
    asked = [record for record in mine if bool(record["quick"]) == quick]
    if not asked:
        raise SpecError("bench.report: there are no quick records. Hint: python -m bench.run --quick --out FILE")
    shown = newest(asked)
    return Results(
        problems=tuple(r for r in shown if is_problem(r) and not is_crossover(r)),
        crossover=tuple(r for r in shown if is_crossover(r)),
        cpu=tuple(r for r in shown if not is_problem(r)),
        quick=quick,
        device=on or devices[0],
        replaced=len(asked) - len(shown),
        other=len(mine) - len(asked),
    )


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the newest record of each measurement, in order of time.

    One that was skipped says nothing about what it would have measured: it never replaces one that was not.
    """
    kept: dict[tuple[object, ...], Record] = {}
    for record in sorted(records, key=lambda record: (not _skipped(record), str(record["time"]))):
        kept[_identity(record)] = record
    return sorted(kept.values(), key=lambda record: str(record["time"]))


def _identity(record: Record) -> tuple[object, ...]:
    if is_problem(record):
        return tuple(record[name] for name in ("problem", "mode", "dtype", "head_dim", "contender", "heads"))
    # A sweep has a record for each config.
    config = str(record.get("config")) if record["mode"] == "sweep" else ""
    return (*(record[name] for name in ("case", "mode", "tokens", "dtype", "backend", "heads")), config)


def _skipped(record: Record) -> bool:
    return is_problem(record) and str(record["reason"] or "").startswith("skipped")


@dataclass(frozen=True)
class Setting:
    """What can be compared: one problem, dtype, mode and number of heads, with the contenders that have a time."""

    problem: str
    dtype: str
    mode: str
    records: list[Record] = field(compare=False)

    @property
    def ours(self) -> Record | None:
        """The fastest of our backends, None where none has a time."""
        found = [record for record in self.records if record["kind"] == "backend"]
        return min(found, key=lambda record: float(median(record) or 0), default=None)


def settings(records: Iterable[Record]) -> list[Setting]:
    """Return the settings of problems, largest problem last; of several numbers of heads, the one measured last."""
    timed = [record for record in records if median(record) is not None]
    heads: dict[tuple[str, str, str], int] = {}
    for record in sorted(timed, key=lambda record: (record["kind"] == "backend", str(record["time"]))):
        heads[record["problem"], record["dtype"], record["mode"]] = record["heads"]
    made = [
        Setting(*key, [r for r in timed if (r["problem"], r["dtype"], r["mode"]) == key and r["heads"] == count])
        for key, count in heads.items()
    ]
    return sorted(made, key=lambda setting: (setting.records[0]["tokens"], setting.problem, setting.dtype))


def without_slow_dense(records: Iterable[Record]) -> list[Record]:
    """Return records that have a time, but of dense contenders the fastest of each setting alone."""
    timed = [record for record in records if median(record) is not None]
    fastest: dict[tuple[object, ...], Record] = {}
    for record in sorted(timed, key=lambda record: -(median(record) or 0.0)):
        if record["computes"] == "dense":
            fastest[_compared(record)] = record
    return [record for record in timed if record["computes"] != "dense" or fastest[_compared(record)] is record]


def _compared(record: Record) -> tuple[object, ...]:
    return tuple(record[name] for name in ("problem", "mode", "dtype", "heads"))
