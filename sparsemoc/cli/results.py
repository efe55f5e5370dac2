"""Tuned results in words: a problem's key, what a config changes, times, and how old a result is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sparsemoc.cli.summary import counted
from sparsemoc.tuning.key import Key
from sparsemoc.tuning.outcome import Outcome, checked_time


def operation_of(key: Key) -> str:
    """Return the operation, and whether in a call that computes gradients."""
    return f"{key.operation} (gradients)" if key.gradients and key.operation != "attend_backward" else key.operation


def described(key: Key) -> str:
    """Return the other fields of a key in short; lengths are powers of two that are not exceeded."""
    dims = str(key.head_dim) if key.head_dim == key.v_head_dim else f"{key.head_dim}/{key.v_head_dim}"
    lengths = f"{key.k_tokens:,} keys" if key.q_tokens == key.k_tokens else f"{key.q_tokens:,} x {key.k_tokens:,} keys"
    parts = [
        f"{key.dtype}{f' as {key.precision}' if key.precision != 'ieee' else ''}",
        f"head_dim {dims}",
        lengths,
        f"chunks of {key.chunk:,}, top {key.slots}, {key.anchored:,} anchored",
        served(key),
    ]
    parts += [f"groups of {key.group}"] if key.group > 1 else []
    parts += [f"units of {key.unit}"] if key.unit > 1 else []
    parts += ["token-causal"] if key.token_causal else []
    parts += [f"anchors by {key.anchors}"] if key.anchors != "auto" else []
    return ", ".join(parts)


def served(key: Key) -> str:
    """Return for how many heads, times the batch, a result is used: beyond half its power of two."""
    if not key.rows:
        return "any batch and heads, deterministic"
    fewest = key.rows // 2 + 1
    return f"{fewest:,} to {key.rows:,} heads x batch" if fewest < key.rows else f"{counted(key.rows, 'head')} x batch"


def changes(outcome: Outcome, config: dict[str, Any] | None = None) -> str:
    """Return what a config, the winner where none is given, changes in the default."""
    default = outcome.trials[0].config if outcome.trials else {}
    fields = (outcome.config if config is None else config).items()
    return ", ".join(f"{name}={value}" for name, value in fields if default.get(name) != value) or "the default"


def gain(outcome: Outcome) -> str:
    """Return how many times as fast as the default the winner is."""
    return f"{outcome.default_seconds / outcome.seconds:.2f} x"


def counts(outcome: Outcome) -> str:
    """Return how many configs were measured, how many cannot win for a reason, and how many had no turn."""
    measured = sum(trial.seconds is not None for trial in outcome.trials)
    refused = sum(trial.reason is not None for trial in outcome.trials)
    left = outcome.space - measured - refused
    parts = [f"{measured} of {outcome.space}"]
    parts += [f"{refused} ruled out"] if refused else []
    parts += [f"{left} not tried"] if left > 0 else []
    return ", ".join(parts)


def refusals(outcome: Outcome) -> list[str]:
    """Return each config that cannot win, by what it changes in the default, and why."""
    return [f"{changes(outcome, trial.config)}: {trial.reason}" for trial in outcome.trials if trial.reason is not None]


def age(outcome: Outcome) -> str:
    """Return how old a result is: under a minute, 5 min, 3 h, 12 days."""
    seconds = (datetime.now(UTC) - checked_time(outcome.time)).total_seconds()
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count:,} {'day' if unit == 'days' and count == 1 else unit}"
    return "under a minute"
