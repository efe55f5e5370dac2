"""Where crossovers are kept: the user's own measurements, and those that come with the package.

<cache folder>/crossover/<digest of the environment>.json is the user's, and comes first;
data/<architecture>/<backend>.crossover.json is the package's. A file holds one crossover for each dtype and head_dim.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemoc.backends.files import cache_folder, write_whole
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.tuning import shipped
from sparsemoc.tuning.crossover import Crossover
from sparsemoc.tuning.files import read_json, reason_of
from sparsemoc.tuning.key import Environment

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

#: Of the files.
VERSION = 1


def load(environment: Environment) -> tuple[Crossover, ...]:
    """Return what was measured on this hardware, by dtype and head_dim: the user's own before what is shipped.

    A file that is damaged or another's counts as absent.
    """
    own = _own(environment)
    known = {(one.dtype, one.head_dim) for one in own}
    shipped = _shipped(environment.architecture, environment.backend)
    return _sorted([*own, *(one for one in shipped if (one.dtype, one.head_dim) not in known)])


def measured(backend: str) -> bool:
    """Return whether a backend was measured at all, on whatever hardware: asked before it is loaded."""
    _, name = shipped.place("", backend)
    if any((folder / f"{name}.crossover.json").is_file() for folder in _folders(shipped.data_folder())):
        return True
    return any(_backend_of(path) == backend for path in _folder().glob("*.json"))


def place(environment: Environment) -> Path:
    """Return the user's file of an environment."""
    return _folder() / f"{environment.digest}.json"


def save(environment: Environment, crossover: Crossover) -> str | None:
    """Keep a crossover in the user's cache, in place of an earlier one of its dtype and head_dim.

    Return why it could not be written, or None.
    """
    held = _merged(_own(environment), crossover)
    path = place(environment)
    try:
        write_whole(path, _text({"environment": environment._asdict()}, held).encode())
    except OSError as error:
        return f"{path} cannot be written: {reason_of(error)}"
    return None


def ship(crossover: Crossover, folder: Path) -> Path:
    """Write a crossover into a folder of data, beside those of other dtypes and head_dims, and return the file.

    Args:
        crossover: what was measured.
        folder: sparsemoc/tuning/data of a checkout.

    Raises:
        SpecError: a file is there and damaged: it is left as it is.
        OSError: it cannot be written.
    """
    names = {"architecture": crossover.architecture, "backend": crossover.backend}
    within, name = shipped.place(**names)
    path = folder / within / f"{name}.crossover.json"
    try:
        held = _crossovers(read_json(path), names)
    except FileNotFoundError:
        held = ()
    except (OSError, ValueError) as error:
        raise SpecError(
            f"ship: {path} must be a file of crossovers, or absent: {reason_of(error)}. Hint: remove it."
        ) from None
    write_whole(path, _text(names, _merged(held, crossover)).encode())
    return path


def _folder() -> Path:
    return Path(cache_folder()) / "crossover"


def _folders(data: Traversable) -> Iterable[Traversable]:
    return [one for one in data.iterdir() if one.is_dir()] if data.is_dir() else []


def _backend_of(path: Path) -> str | None:
    """Return the backend that a file of the user is about, None for one that is damaged."""
    try:
        found = read_json(path)["environment"]["backend"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return str(found)


def _own(environment: Environment) -> tuple[Crossover, ...]:
    try:
        return _crossovers(read_json(place(environment)), {"environment": environment._asdict()})
    except (OSError, ValueError):
        return ()


def _shipped(architecture: str, backend: str) -> tuple[Crossover, ...]:
    within, name = shipped.place(architecture, backend)
    path = shipped.data_folder() / within / f"{name}.crossover.json"
    try:
        return _crossovers(json.loads(path.read_bytes()), {"architecture": architecture, "backend": backend})
    except (OSError, ValueError, RecursionError):
        return ()


def _crossovers(values: Any, names: dict[str, Any]) -> tuple[Crossover, ...]:
    """Return the crossovers of a file's JSON; raise ValueError where it is not whole, or has other names than these."""
    wanted = {"version": VERSION, **names}
    if not isinstance(values, dict) or set(values) != {*wanted, "crossovers"}:
        raise ValueError(f"must hold {', '.join(wanted)} and crossovers, got {describe(values)}")
    for name, value in wanted.items():
        if values[name] != value:
            raise ValueError(f"{name} must be {value!r}, got {describe(values[name])}")
    if not isinstance(values["crossovers"], list):
        raise ValueError(f"crossovers must be a list, got {describe(values['crossovers'])}")
    return _sorted(Crossover.from_dict(one) for one in values["crossovers"])


def _merged(held: Iterable[Crossover], new: Crossover) -> tuple[Crossover, ...]:
    return _sorted([*(one for one in held if (one.dtype, one.head_dim) != (new.dtype, new.head_dim)), new])


def _sorted(crossovers: Iterable[Crossover]) -> tuple[Crossover, ...]:
    return tuple(sorted(crossovers, key=lambda one: (one.dtype, one.head_dim)))


def _text(names: dict[str, Any], crossovers: Iterable[Crossover]) -> str:
    # A line to a crossover: changes of one do not blur the others.
    lines = ",\n".join(json.dumps(one.to_dict()) for one in crossovers)
    return json.dumps({"version": VERSION, **names})[:-1] + f', "crossovers": [\n{lines}\n]}}\n'
