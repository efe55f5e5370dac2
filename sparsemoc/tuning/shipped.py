"""Results that come with the package: by architecture, so that a new user's first call runs what was tuned on its like.

data/<architecture>/<backend>.json holds them. They come after the user's own, and only as what to try: a config that
the backend no longer knows, or that cannot run the problem, is passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsemoc.backends.files import write_whole
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.tuning.files import read_json, reason_of
from sparsemoc.tuning.key import Key
from sparsemoc.tuning.outcome import checked_time
from sparsemoc.tuning.store import Entry, named_tuple

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

VERSION = 1
#: Lengths in which a near key may differ, each by this factor at most.
NEAR, FACTOR = ("chunk", "slots", "anchored", "q_tokens", "k_tokens"), 2
#: What a near key may differ in besides, as no config that wins is wrong for another.
FREE = ("rows", "gradients")


class Record(NamedTuple):
    """A shipped result.

    Attributes:
        key: what it was tuned for.
        config: fields of the winner, the default's own where nothing beat it.
        gain: the default's time over the winner's.
        device, versions, sources: of its environment.
        time: when it was measured.
    """

    key: Key
    config: dict[str, Any]
    gain: float
    device: str
    versions: str
    sources: str
    time: str


def load(architecture: str, backend: str, key: Key) -> list[dict[str, Any]]:
    """Return the fields of configs worth using for a key, the best match first.

    First the result of the key itself, then those of near keys: of the same operation, dtype, head_dims and so on, each
    length within a factor of 2, the nearest first by the sum of |log2| of the ratios.
    """
    ranked = [(rank, one) for one in _records(architecture, backend) if (rank := _rank(key, one)) is not None]
    return [dict(one.config) for _, one in sorted(ranked, key=lambda pair: pair[0])]


def _rank(key: Key, record: Record) -> tuple[Any, ...] | None:
    """Return what near records are sorted by, None for one that is not near.

    For a deterministic key (rows 0) the rows of a record say nothing: ties are broken by its gain, then by its text.
    """
    held = record.key
    distance = 0.0
    for name in Key._fields:
        wanted, found = getattr(key, name), getattr(held, name)
        if wanted == found or name in FREE:
            continue
        if name not in NEAR or not wanted or not found or not 1 / FACTOR <= found / wanted <= FACTOR:
            return None
        distance += abs(math.log2(found / wanted))
    rows = abs(math.log2(held.rows / key.rows)) if held.rows and key.rows else 0.0
    text = json.dumps(record.config, sort_keys=True)
    return held != key, distance, held.gradients != key.gradients, rows, -record.gain, text


def data_folder() -> Traversable:
    """Return the folder of the package's data."""
    from importlib.resources import files  # here, for it loads what a call with a config of its own does not need

    return files("sparsemoc.tuning") / "data"


def place(architecture: str, backend: str) -> tuple[str, str]:
    """Return the names of the folder and, less its ending, of the file of a backend's results on an architecture."""
    folder, name = (re.sub(r"[^\w.+-]|^\.+", "-", part, flags=re.ASCII) or "-" for part in (architecture, backend))
    return folder, name


@cache
def _records(architecture: str, backend: str) -> tuple[Record, ...]:
    """Return what is shipped, nothing where there is no file or none that is whole."""
    within, name = place(architecture, backend)
    try:
        values = json.loads((data_folder() / within / f"{name}.json").read_bytes())
        return tuple(records_of(values, architecture, backend))
    except (OSError, ValueError, RecursionError):
        return ()


def records_of(values: Any, architecture: str, backend: str) -> list[Record]:
    """Return the records of a file's JSON.

    Raises:
        ValueError: it is not whole, or another architecture's or backend's.
    """
    wanted = {"version": VERSION, "architecture": architecture, "backend": backend}
    if not isinstance(values, dict) or set(values) != {*wanted, "entries"} or not isinstance(values["entries"], list):
        raise ValueError(f"must hold {', '.join(wanted)} and a list of entries, got {describe(values)}")
    for name, value in wanted.items():
        if values[name] != value:
            raise ValueError(f"{name} must be {value!r}, got {describe(values[name])}")
    return [_record_of(one) for one in values["entries"]]


def _record_of(values: Any) -> Record:
    key = named_tuple(Key, values.get("key") if isinstance(values, dict) else None)
    found = named_tuple(Record, values | {"key": key})
    if not 0 < found.gain < math.inf:
        raise ValueError(f"gain must be positive and finite, got {found.gain!r}")
    checked_time(found.time)
    return found


def ship(entries: Iterable[Entry], folder: Path) -> list[Path]:
    """Write results into a folder of data, and return the files: <folder>/<architecture>/<backend>.json.

    Where nothing beat the default, the default's own fields are shipped: a near key's winner must not take their place.
    What a file holds already stays; of two results of a key the newer one does.

    Args:
        entries: results, of any environments.
        folder: sparsemoc/tuning/data of a checkout.

    Raises:
        SpecError: a file is there and damaged.
        OSError: one cannot be written.
    """
    new: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for where, key, outcome in entries:
        gain = round(outcome.default_seconds / outcome.seconds, 3)
        record = Record(key, outcome.config, gain, where.device, where.versions, where.sources, outcome.time)
        new[where.architecture, where.backend].append(record)
    return [_shipped(records, folder, *whose) for whose, records in sorted(new.items())]


def _shipped(new: list[Record], folder: Path, architecture: str, backend: str) -> Path:
    """Write the records of a file, with those that it holds already, and return it."""
    within, name = place(architecture, backend)
    file = folder / within / f"{name}.json"
    newest: dict[Key, Record] = {}
    for record in sorted([*_held(file, architecture, backend), *new], key=lambda one: checked_time(one.time)):
        newest[record.key] = record
    head = {"version": VERSION, "architecture": architecture, "backend": backend}
    # A line to a result: changes of one do not blur the others.
    lines = [json.dumps(one._asdict() | {"key": one.key._asdict()}) for _, one in sorted(newest.items())]
    text = json.dumps(head)[:-1] + ', "entries": [\n' + ",\n".join(lines) + "\n]}\n"
    write_whole(file, text.encode())
    return file


def _held(file: Path, architecture: str, backend: str) -> list[Record]:
    try:
        return records_of(read_json(file), architecture, backend)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise SpecError(
            f"ship: {file} must be a file of shipped results, or absent: {reason_of(error)}. Hint: remove it."
        ) from None
