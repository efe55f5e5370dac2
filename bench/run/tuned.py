"""Tuning before anything is timed, on the arrays that are timed, within a budget of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sparsemoc.tuning.session import tune

#: Most configs of an operation.
MOST_CONFIGS, QUICK_CONFIGS = 16, 3


@dataclass(eq=False)
class Tuner:
    """What is tuned in a run.

    Attributes:
        budget_s: seconds for all of it; 0 for none: calls then take what tuning knows already.
        max_configs: most configs to measure of one operation.
        progress: told of each config.
        spent: seconds so far.
        tuned, reused: results found in this run, and those that were there before.
        skipped: what could not be tuned, by reason.
        unsaved: why results could not be kept, or None.
    """

    budget_s: float
    max_configs: int
    progress: Callable[[str], None] | None = None
    spent: float = 0.0
    tuned: int = 0
    reused: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    unsaved: str | None = None

    def tune(self, call: Callable[[], Any]) -> None:
        """Tune the operations of a call that have no result yet."""
        left = self.budget_s - self.spent
        if left <= 0:
            if self.budget_s:
                self.skipped["--tune-budget-s is used up"] += 1
            return
        with tune(budget_s=left, max_configs=self.max_configs, progress=self.progress) as session:
            call()
        self.spent += session.spent
        self.tuned += len(session.outcomes)
        self.reused += len(session.reused)
        self.skipped.update(session.skipped.values())
        self.unsaved = session.unsaved or self.unsaved

    def __str__(self) -> str:
        if not self.budget_s:
            return "tuning: none (--no-tune); calls take the configs that earlier tuning has found"
        told = f"tuning: {self.tuned} new results in {self.spent:.1f} s, reused {self.reused} results"
        reasons = ", ".join(f"{reason} ({count})" for reason, count in self.skipped.items())
        return told + (f"; not tuned: {reasons}" if reasons else "") + (f"; {self.unsaved}" if self.unsaved else "")
