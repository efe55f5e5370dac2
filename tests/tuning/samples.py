"""Results that were never measured."""

from __future__ import annotations

from typing import Any

from sparsemoc.tuning.key import Environment, Key
from sparsemoc.tuning.outcome import Outcome, Trial
from sparsemoc.tuning.store import Entry

ENVIRONMENT = Environment("numba", "numba 0.61, 256-bit vectors", "AMD EPYC", "znver4", "", "0123456789abcdef")
KEY = Key("attend", "float32", "ieee", 128, 128, 1, False, 1, 3, 2048, 2048, 32768, 32768, 16, "auto", False)
EARLY, LATE = "2026-01-02T03:04:05+00:00", "2026-01-02T03:04:06+00:00"


def outcome(seconds: float = 0.5, time: str = EARLY, **config: Any) -> Outcome:
    """Return the outcome of a config that took so long, against a second of the default."""
    trials = (
        Trial(config={"tile": 64}, predicted=1.0, seconds=1.0, p20=0.9, p80=1.1),
        Trial(config=config, seconds=seconds, p20=seconds, p80=seconds),
        Trial(config={"tile": 4096}, reason="needs 300,000 bytes of shared memory"),
    )
    return Outcome(
        config=config, seconds=seconds, default_seconds=1.0, trials=trials, space=9, budget=10.0, spent=3, time=time
    )


def entry(seconds: float = 0.5, time: str = EARLY, tile: int = 128, environment: Environment = ENVIRONMENT,
          **key: Any) -> Entry:  # fmt: skip
    """Return an entry whose key differs from KEY as told."""
    return Entry(environment, KEY._replace(**key), outcome(seconds, time, tile=tile))
