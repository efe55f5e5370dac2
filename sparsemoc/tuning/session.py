"""`sparsemoc.tune`: the one place where a call may measure configs, and the config that every other call takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

from sparsemoc.spec.checks import whole
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.tuning import resolve as resolution
from sparsemoc.tuning.outcome import Outcome, config_of
from sparsemoc.tuning.progress import Progress, printed, titled
from sparsemoc.tuning.store import Store
from sparsemoc.tuning.work import Work

#: An operation takes at most this share of the time that is left, so that the next ones have some too.
SHARE = 0.5


@dataclass(eq=False)
class Session:
    """What happens in a `tune` block.

    Attributes:
        budget_s, max_configs: as given to `tune`.
        outcomes: what was tuned, by environment and key.
        reused: keys that had a result already, of this process or of the user's cache.
        skipped: operations that could not be tuned, and why, by environment and key.
        unsaved: why results could not be written, or None; they hold in this process all the same.
    """

    budget_s: float
    max_configs: int
    progress: Progress
    again: bool = False
    outcomes: dict[Any, Outcome] = field(default_factory=dict)
    reused: set[Any] = field(default_factory=set)
    skipped: dict[Any, str] = field(default_factory=dict)
    unsaved: str | None = None
    spent: float = 0.0
    _lock: RLock = field(default_factory=RLock)

    @property
    def left(self) -> float:
        """Seconds that are left for measuring."""
        return max(0.0, self.budget_s - self.spent)

    def visit(self, work: Work) -> None:
        """Tune an operation, unless it has a result or cannot be tuned here."""
        with self._lock:
            place = work.environment, work.key
            if place in self.outcomes or place in self.reused or place in self.skipped:
                return
            if not self.again and resolution.resolve(work.backend, work.problem, work.operation).source in (
                "memory", "cache",
            ):  # fmt: skip
                self.reused.add(place)
                return
            from sparsemoc.tuning.candidates import cannot_tune  # here, for calls that tune nothing
            from sparsemoc.tuning.search import NotTuned, search

            reason = cannot_tune(work) or ("the budget is used up" if self.left <= 0 else None)
            if reason is not None:
                self._skip(work, reason)
                return
            try:
                outcome = search(work, self.left * SHARE, self.max_configs, self.progress)
            except NotTuned as why:
                self.skipped[place] = str(why)
                self.spent += why.spent
            else:
                self.spent += outcome.spent
                self._keep(work, outcome)

    def _skip(self, work: Work, reason: str) -> None:
        self.skipped[work.environment, work.key] = reason
        self.progress.tell(f"not tuned: {titled(work)}: {reason}")

    def _keep(self, work: Work, outcome: Outcome) -> None:
        self.outcomes[work.environment, work.key] = outcome
        resolution.remember(work.environment, work.key, config_of(work.backend, work.problem, outcome.config))
        unsaved = Store().save(work.environment, work.key, outcome)
        if unsaved is not None:
            self.unsaved = unsaved
            self.progress.tell(f"  not saved, and so for this process only: {unsaved}")


#: The open blocks, the innermost last. Of the whole process: autograd and host callbacks run in threads of their own.
_OPEN: list[Session] = []


@contextmanager
def tune(
    *,
    budget_s: float = 60.0,
    max_configs: int = 16,
    again: bool = False,
    progress: Progress | Callable[[str], None] | None = printed,
) -> Iterator[Session]:
    """Measure configs for the calls inside the block, on their own arrays, and use the fastest from then on.

    Each operation (pool, route, attend, attend_backward) whose key has no result yet tries the configs of its backend:
    the default first, then the others as the backend's cost model ranks them. A config wins only if its results agree
    with the reference and it is faster than the default, so a tuned call is never slower. Results go to the user's
    cache (SPARSEMOC_CACHE_DIR, else the platform's cache folder) and serve later processes. Outside such a block no
    call ever measures anything.

    Args:
        budget_s: seconds for measuring, over the whole block; an operation takes at most half of what is left.
        max_configs: most configs to measure of one operation, the default among them.
        again: whether to tune what has a result already.
        progress: told of each config, with the time left; a function of a line of text, or None for silence. By
            default lines go to standard error where that is a terminal.

    Yields:
        The Session: what was tuned, reused, skipped.

    Raises:
        SpecError: an argument breaks a rule.

    Example:
        >>> import numpy as np, sparsemoc as moc
        >>> spec = moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=2, anchors=("chunk",))
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 128, 2, 32), np.float32)
        >>> with moc.tune(budget_s=1, max_configs=2) as session:  # doctest: +SKIP
        ...     out = moc.attention(q, k, v, spec)
    """
    if isinstance(budget_s, bool) or not isinstance(budget_s, (int, float)) or not 0 < budget_s < float("inf"):
        raise SpecError(f"tune: budget_s must be a positive number of seconds, got {describe(budget_s)}.")
    whole(max_configs, "tune: max_configs", least=1)
    if not isinstance(again, bool):
        raise SpecError(f"tune: again must be True or False, got {describe(again)}.")
    session = Session(float(budget_s), max_configs, Progress.of(progress), again)
    _OPEN.append(session)
    try:
        yield session
    finally:
        _OPEN.remove(session)


def config_for(work: Work, explicit: Any) -> Any:
    """Return the config an operation runs with, None for the backend's default; inside `tune`, tune it first."""
    if explicit is not None:
        return explicit
    if _OPEN:
        _OPEN[-1].visit(work)
    return resolution.resolve(work.backend, work.problem, work.operation).config
