"""The user's cache of tuned results: one JSON file to a key, read by every process, written without locks.

<root>/tune/v1/<digest of the environment>/manifest.json says what the environment is, for people;
<root>/tune/v1/<digest of the environment>/entries/<digest of the key>.json holds one result, with environment and key.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_origin, get_type_hints

from sparsemoc.backends.files import cache_folder, write_whole
from sparsemoc.spec.errors import describe
from sparsemoc.tuning.files import read_json, reason_of
from sparsemoc.tuning.key import Environment, Key
from sparsemoc.tuning.outcome import Outcome, checked_time

#: Of an entry's JSON; another version of the files has another folder too.
VERSION = 1

_Named = TypeVar("_Named", bound=tuple[Any, ...])


class Entry(NamedTuple):
    """A result, where it holds and for which problems."""

    environment: Environment
    key: Key
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "version": VERSION,
            "environment": self.environment._asdict(),
            "key": self.key._asdict(),
            "outcome": self.outcome.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Entry:
        """Return the entry of `to_dict`.

        Raises:
            ValueError: another version, or a field is absent, unknown, or of the wrong kind.
        """
        if not isinstance(values, dict) or set(values) != {"version", *cls._fields}:
            raise ValueError(f"an entry must hold version, {', '.join(cls._fields)}, got {describe(values)}")
        if values["version"] != VERSION:
            raise ValueError(f"an entry must be of version {VERSION}, got {describe(values['version'])}")
        return cls(
            named_tuple(Environment, values["environment"]),
            named_tuple(Key, values["key"]),
            Outcome.from_dict(values["outcome"]),
        )


class Merged(NamedTuple):
    """How many entries a merge brought in: of new keys, newer ones of known keys, and those left for newer ones."""

    added: int
    replaced: int
    kept: int


class Store:
    """Results on disk.

    Args:
        root: its folder; None for the user's, see `cache_folder`.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(cache_folder() if root is None else root)

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return self.root / "tune" / f"v{VERSION}"

    def load(self, environment: Environment, key: Key) -> Outcome | None:
        """Return a result, None where there is none that is whole and this environment's and key's own."""
        try:
            found = self._read(self._place(environment, key))
        except (OSError, ValueError):
            return None
        return found.outcome if (found.environment, found.key) == (environment, key) else None

    def save(self, environment: Environment, key: Key, outcome: Outcome) -> str | None:
        """Keep a result, in place of an earlier one. Return why it could not be written, or None."""
        place = self._place(environment, key)
        try:
            write_whole(place, json.dumps(Entry(environment, key, outcome).to_dict(), indent=1).encode())
        except (OSError, TypeError, ValueError) as error:  # the last two: a config of what JSON cannot hold
            return f"{place} cannot be written: {reason_of(error)}"
        _write_manifest(place.parent.parent / "manifest.json", environment)
        return None

    def unwritable(self) -> str | None:
        """Return why nothing can be written, or None: asked before minutes are spent on measuring."""
        probe = self.folder / "probe"
        try:
            write_whole(probe, b"")
            probe.unlink(missing_ok=True)  # another process may have asked at the same time
        except OSError as error:
            return f"{self.folder} cannot be written: {reason_of(error)}"
        return None

    def entries(self) -> Iterator[Entry]:
        """Return every whole entry of every environment."""
        for _, found in self._files():
            if isinstance(found, Entry):
                yield found

    def damaged(self) -> list[tuple[Path, str]]:
        """Return the files that are no whole entry, and why."""
        return [(path, found) for path, found in self._files() if isinstance(found, str)]

    def merge(self, entries: Iterable[Entry]) -> Merged:
        """Take in entries of another machine; of two results of an environment and key the newer stays.

        Raises:
            OSError: one cannot be written.
        """
        added = replaced = kept = 0
        for entry in entries:
            present = self.load(entry.environment, entry.key)
            newest = present is None or checked_time(present.time) < checked_time(entry.outcome.time)
            if not newest:
                kept += 1
                continue
            reason = self.save(*entry)
            if reason is not None:
                raise OSError(reason)
            added, replaced = added + (present is None), replaced + (present is not None)
        return Merged(added, replaced, kept)

    def clear(self) -> int:
        """Remove all results, the damaged ones too, and return how many files they were.

        Raises:
            OSError: they cannot be removed.
        """
        count = sum(1 for _ in self._files())
        if self.folder.exists():
            shutil.rmtree(self.folder)
        return count

    def _place(self, environment: Environment, key: Key) -> Path:
        return self.folder / environment.digest / "entries" / f"{key.digest}.json"

    def _read(self, path: Path) -> Entry:
        """Return the entry of a file, or raise OSError or ValueError."""
        found = Entry.from_dict(read_json(path))
        if path != self._place(found.environment, found.key):
            raise ValueError("holds the entry of another environment or key than its name says")
        return found

    def _files(self) -> Iterator[tuple[Path, Entry | str]]:
        """Return each file of results with its entry, or with why it holds none."""
        for path in sorted(self.folder.glob("*/entries/*.json")):
            try:
                yield path, self._read(path)
            except FileNotFoundError:  # removed since it was listed
                continue
            except (OSError, ValueError) as error:
                yield path, reason_of(error)


def named_tuple(cls: type[_Named], values: Any) -> _Named:
    """Return the named tuple with these fields.

    Raises:
        ValueError: one is absent, unknown, or of another kind.
    """
    kinds = _kinds(cls)
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise ValueError(f"{cls.__name__} must hold {', '.join(kinds)}, got {describe(values)}")
    for name, kind in kinds.items():
        whole_float = kind is float and type(values[name]) is int
        if type(values[name]) is not kind and not whole_float:
            raise ValueError(f"{cls.__name__}: {name} must be {kind.__name__}, got {describe(values[name])}")
    return cls(**values)


@cache
def _kinds(cls: type[Any]) -> dict[str, type]:
    return {name: get_origin(kind) or kind for name, kind in get_type_hints(cls).items()}


def _write_manifest(path: Path, environment: Environment) -> None:
    # Nothing reads it back: a result is whole without it.
    with suppress(OSError):
        write_whole(path, json.dumps({"version": VERSION} | environment._asdict(), indent=1).encode())
