"""Tuned results as one file, to carry them to another machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sparsemoc.backends.files import write_whole
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.tuning.files import read_json, reason_of
from sparsemoc.tuning.store import Entry

VERSION = 1


def export(entries: Iterable[Entry], file: Path) -> int:
    """Write entries to a file, and return how many.

    Raises:
        OSError: it cannot be written.
    """
    held = [entry.to_dict() for entry in entries]
    write_whole(file, json.dumps({"version": VERSION, "entries": held}, indent=1).encode() + b"\n")
    return len(held)


def read_export(file: Path) -> list[Entry]:
    """Return the entries of a file that `export` wrote.

    Raises:
        SpecError: there is no such file, or it is damaged: nothing of it is taken.
    """
    try:
        held = read_json(file)
    except (OSError, ValueError) as error:
        raise SpecError(f"{_must(file)}: {reason_of(error)}. Hint: sparsemoc tuned export FILE writes one.") from None
    if not isinstance(held, dict) or set(held) != {"version", "entries"} or not isinstance(held["entries"], list):
        raise SpecError(f"{_must(file)}: it must hold version and a list of entries. Hint: is it another file?")
    if held["version"] != VERSION:
        raise SpecError(f"{_must(file)}: its version must be {VERSION}, got {describe(held['version'])}.")
    found = []
    for number, values in enumerate(held["entries"]):
        try:
            found.append(Entry.from_dict(values))
        except ValueError as error:
            raise SpecError(f"{_must(file)}: entries[{number}]: {error}.") from None
    return found


def _must(file: Path) -> str:
    return f"read_export: {file} must be a file of exported results"
