"""Outcome: what tuning found for one key, with every config that was tried, the failed ones too; as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any

from sparsemoc.backends import Backend, Problem
from sparsemoc.spec.errors import describe

#: Of the JSON.
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One config that was considered.

    Attributes:
        config: its fields.
        predicted: seconds by the backend's cost model, None where it says nothing.
        seconds, p20, p80: measured median and quantiles; None where it was not measured.
        reason: why it cannot win: the cost model's, an error's text, or how far its results are off. None if it can.
    """

    config: dict[str, Any]
    predicted: float | None = None
    seconds: float | None = None
    p20: float | None = None
    p80: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What tuning found for one key.

    Attributes:
        config: fields of the winner; those of the backend's default where nothing beat it.
        seconds: its median time.
        default_seconds: that of the backend's default, in the same rounds.
        trials: what was tried, the default first.
        space: configs in the backend's search space.
        budget: seconds that were allowed; spent: that were used.
        time: when, ISO 8601 in UTC.
    """

    config: dict[str, Any]
    seconds: float
    default_seconds: float
    trials: tuple[Trial, ...]
    space: int
    budget: float
    spent: float
    time: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self) | {"trials": [asdict(trial) for trial in self.trials]}

    @classmethod
    def from_dict(cls, values: Any) -> Outcome:
        """Return the outcome of `to_dict`.

        Raises:
            ValueError: a field is absent, unknown, of the wrong kind, or no time.
        """
        found = _checked(cls, values)
        for name in ("seconds", "default_seconds"):
            if not 0 < found[name] < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {describe(found[name])}")
        checked_time(found["time"])
        trials = tuple(Trial(**_checked(Trial, trial)) for trial in found["trials"])
        return cls(**found | {"trials": trials})


#: What a field of either class may hold.
_KINDS: dict[str, tuple[type, ...]] = {
    "config": (dict,), "trials": (list,), "space": (int,), "time": (str,), "reason": (str, type(None)),
    **dict.fromkeys(("seconds", "default_seconds", "budget", "spent"), (float, int)),
    **dict.fromkeys(("predicted", "p20", "p80"), (float, int, type(None))),
}  # fmt: skip


def checked_time(time: str) -> datetime:
    """Return the time of a result, or raise ValueError: it must be ISO 8601 and name its zone, to be compared."""
    found = datetime.fromisoformat(time)
    if found.tzinfo is None:
        raise ValueError(f"time must name its zone, got {time!r}")
    return found


def _checked(cls: type[Any], values: Any) -> dict[str, Any]:
    """Return the fields of a class if they are all there, each of its kind, and no other."""
    names = {field.name for field in fields(cls)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"{cls.__name__} must hold {sorted(names)}, got {describe(values)}")
    for name, value in values.items():
        kinds = (*_KINDS[name], type(None)) if cls is Trial and name == "seconds" else _KINDS[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(
                f"{cls.__name__}: {name} must be {' or '.join(k.__name__ for k in kinds)}, got {describe(value)}"
            )
    return dict(values)


def fields_of(config: Any) -> dict[str, Any]:
    """Return the fields of a config, as JSON holds them."""
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}


def config_of(backend: Backend, problem: Problem, values: dict[str, Any]) -> Any:
    """Return the config with these fields.

    Raises:
        Exception: whatever the backend's class of configs raises where it does not know them.
    """
    return type(backend.default_config(problem))(**values)
