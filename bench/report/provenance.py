"""Where figures come from: the machine, versions, commit, days and commands of records, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from bench.report.records import Record, device, is_problem

#: More commands than these are counted, not written, at the foot of a picture; the page has them all.
COMMANDS = 4


def command(record: Record) -> str:
    """Return the command that measures a record."""
    return str(record.get("command") or f"python -m bench.cpu --case {record['case']}")


def commands(records: Iterable[Record]) -> list[str]:
    """Return the commands of records, each once, in order."""
    return list(dict.fromkeys(command(record) for record in records))


def machines(records: Iterable[Record]) -> list[str]:
    """Return the machines of records, with cores and threads."""
    return list(dict.fromkeys(_machine(record) for record in records))


def versions(records: Iterable[Record]) -> list[str]:
    """Return the versions of records, one text for each set of them."""
    texts = (", ".join(f"{name} {v}" for name, v in record["versions"].items() if v) for record in records)
    return list(dict.fromkeys(texts))


def commits(records: Iterable[Record]) -> list[str]:
    """Return the commits of records, short."""
    return list(dict.fromkeys(_commit(record) for record in records))


def days(records: Iterable[Record]) -> str:
    """Return the day of records, or the first and the last."""
    found = sorted({str(record["time"])[:10] for record in records})
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"


def foot(records: Sequence[Record], notes: Sequence[str], width: int) -> list[str]:
    """Return the small print of a picture, wrapped: notes, machine, versions, commit, days, commands."""
    facts = ("; ".join(machines(records)), " / ".join(versions(records)), ", ".join(commits(records)), days(records))
    asked = commands(records)
    lines = [*notes, " · ".join(facts), *(f"$ {text}" for text in asked[:COMMANDS])]
    if len(asked) > COMMANDS:
        lines.append(f"and {len(asked) - COMMANDS} more commands: see the page")
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="   ")]


def _machine(record: Record) -> str:
    if not is_problem(record):
        return f"{device(record)}, {record['threads']} threads"
    machine = record["machine"]
    facts = [f"{machine[name]} {name}" for name in ("cores", "threads") if machine.get(name)]
    if machine.get("driver"):
        facts.append(f"driver {machine['driver']}")
    kind = f" ({machine['architecture']})" if machine.get("architecture") else ""
    return ", ".join([f"{device(record)}{kind}", *facts])


def _commit(record: Record) -> str:
    head, _, dirty = (record.get("commit") or "no commit").partition("-")
    return f"{head[:10]} with changes" if dirty else head[:10]
