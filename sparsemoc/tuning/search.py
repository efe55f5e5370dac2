"""The search: which config of a backend runs an operation fastest on the arrays of a call, within a budget.

Configs that the backend's cost model refuses are left out, the others tried in the order of its predictions, behind the
default. Each is run, judged (see `judge`) and timed in turn with the best so far; what is more than 15 % slower than
the best drops out. The best three and the default then take turns in rounds, every other round backwards. The winner
must beat the default by 2 % in the median of the rounds' quotients, and in 70 % of the rounds; else the default stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from sparsemoc.backends.protocol import Estimate, Tunable
from sparsemoc.tuning.candidates import configs_of
from sparsemoc.tuning.clock import Clock, clock_of
from sparsemoc.tuning.judge import Judge
from sparsemoc.tuning.outcome import Outcome, Trial, fields_of
from sparsemoc.tuning.progress import Progress, changed, duration, titled
from sparsemoc.tuning.work import Work

#: A config this many times as slow as the best so far drops out after one look; so many enter the rounds.
NEAR, FINALISTS = 1.15, 3
#: Rounds that decide: too few say nothing, more tell no more.
LEAST_ROUNDS, MOST_ROUNDS = 3, 31
#: What the winner needs: gain in the median, and share of rounds in which it was faster.
GAIN, SHARE = 1.02, 0.7
#: Share of the budget that is kept for the rounds.
RESERVED = 0.25
#: A turn is never longer than this share of the budget, so that small budgets see several configs.
TURN_SHARE = 1 / 200


class NotTuned(Exception):  # noqa: N818  no error: the call goes on with what it would have had
    """Nothing was found out; the text says why.

    Attributes:
        spent: seconds that it took.
    """

    def __init__(self, reason: str, spent: float) -> None:
        super().__init__(reason)
        self.spent = spent


def search(work: Work, budget_s: float, max_configs: int, progress: Progress, clock: Clock | None = None) -> Outcome:
    """Return what the search finds.

    Args:
        work: the operation.
        budget_s: seconds, counted from the end of the first call under the default: that compiles, and the caller
            would have waited for it anyway. No config begins that would, by those before it, need more than is left.
        max_configs: most configs to run, the default among them.
        progress: told of each config.
        clock: what measures, by default as the library of the arrays demands.

    Raises:
        NotTuned: the default's results are wrong, or the budget was used up before another config was timed.
        Exception: whatever the backend raises under its default; other configs may raise what they like.
    """
    if clock is None:
        clock = clock_of(work.problem, work.arguments[0])
    return _Search(work, budget_s, max_configs, progress, clock).run()


@dataclass(eq=False)
class _Entrant:
    """A config that was timed: its time as a multiple of the default's, and its turns."""

    config: Any
    predicted: float | None
    relative: float = 1.0
    turns: list[float] = field(default_factory=list)


class _Search:
    def __init__(self, work: Work, budget_s: float, max_configs: int, progress: Progress, clock: Clock) -> None:
        self._work, self._progress, self._clock = work, progress, clock
        self._budget, self._most = budget_s, max_configs
        self._start = 0.0
        self._default, *self._others = configs_of(work)
        self._judge = Judge(work)
        self._failed: list[Trial] = []
        self._entrants: list[_Entrant] = []

    @property
    def _left(self) -> float:
        return self._budget - self._spent

    @property
    def _spent(self) -> float:
        return self._clock.now() - self._start

    def run(self) -> Outcome:
        self._progress.tell(f"tune {titled(self._work)}; {1 + len(self._others)} configs, {self._budget:.3g} s")
        self._try_default()
        wanted = self._ranked()[: self._most - 1]
        if wanted and self._try_others(wanted) == 0:
            needed = self._spent + self._first_guess() + LEAST_ROUNDS * self._round_s(self._entrants[:1] * 2)
            raise NotTuned(
                f"the budget of {self._budget:.3g} s for this operation is too small to compare a config with the "
                f"default. Hint: it takes about {math.ceil(needed)} s",
                self._spent,
            )
        del self._judge  # and with it the default's results
        return self._outcome(self._rounds())

    def _try_default(self) -> None:
        results = self._work.run(None)
        self._start = self._clock.now()
        verdict = self._judge.default(results)
        if verdict.reason is not None:
            reason = f"the default's results differ from the reference: {verdict.reason}"
            self._progress.tell(f"  NOT TUNED, and not to be trusted: {reason}")
            raise NotTuned(reason, self._spent)
        predicted = self._estimate(self._default).seconds
        default = _Entrant(self._default, predicted)
        self._entrants.append(default)
        self._turn(default)
        self._progress.tell(f"  1: default, {duration(default.turns[0])}; {max(0, self._left):.3g} s left")

    def _estimate(self, config: Any) -> Estimate:
        backend = self._work.backend
        if not isinstance(backend, Tunable):
            return Estimate()
        return backend.estimate(self._work.problem, self._work.operation, config)

    def _ranked(self) -> list[_Entrant]:
        """Return the configs that may run, as the cost model ranks them; keep why the others may not."""
        found = []
        for config in self._others:
            try:
                estimate = self._estimate(config)
            except Exception as error:  # noqa: BLE001  a config of its space is the backend's own matter
                estimate = Estimate(reason=_line(error))
            if estimate.reason is None:
                found.append(_Entrant(config, estimate.seconds))
            else:
                name = f"not tried: {changed(config, self._default)}"
                self._fail(_Entrant(config, estimate.seconds), estimate.reason, name)
        found.sort(key=lambda one: (one.predicted is None, one.predicted or 0.0))
        return found

    def _try_others(self, wanted: list[_Entrant]) -> int:
        """Run, judge and time configs as long as there is time; return how many were begun."""
        spent: list[float] = []
        for number, entrant in enumerate(wanted, 2):
            begin = self._clock.now()
            expected = float(np.mean(spent)) if spent else self._first_guess()
            if expected + self._reserve() > self._left:
                self._progress.tell(f"  left out for lack of time: {len(wanted) - number + 2} configs")
                break
            self._try(number, len(wanted) + 1, entrant)
            spent.append(self._clock.now() - begin)
        return len(spent)

    def _first_guess(self) -> float:
        """Return the seconds that a config takes which is like the default: judged, and timed."""
        seconds = self._entrants[0].turns[0]
        times = self._times(seconds)
        return seconds * (2 + 4 * times if times > 1 else 3)

    def _reserve(self) -> float:
        """Return the seconds that are kept for the rounds: the fewest, of two configs, at least."""
        return max(LEAST_ROUNDS * self._round_s(self._entrants[:1] * 2), RESERVED * self._budget)

    def _try(self, number: int, count: int, entrant: _Entrant) -> None:
        name = f"{number}/{count}: {changed(entrant.config, self._default)}"
        try:
            verdict = self._judge.candidate(entrant.config)
            if verdict.reason is not None:
                self._fail(entrant, f"wrong: {verdict.reason}", name)
                return
            self._compare(entrant)
        except Exception as error:  # noqa: BLE001  compilers and drivers raise what they like
            self._fail(entrant, _line(error), name)
            return
        self._entrants.append(entrant)
        best = min(self._entrants, key=lambda one: one.relative)
        self._progress.tell(
            f"  {name}, {duration(entrant.turns[-1])}, {1 / entrant.relative:.2f}x the default's speed; best so far "
            f"{1 / best.relative:.2f}x ({changed(best.config, self._default)}); {max(0, self._left):.3g} s left"
        )

    def _compare(self, entrant: _Entrant) -> None:
        """Time a config beside the best so far, whose earlier turns may have seen a quieter machine."""
        best = min(self._entrants, key=lambda one: one.relative)
        self._turn(best)
        self._turn(entrant)
        usual = [best.turns[-1]]
        if self._times(usual[0]) > 1:  # once more, the other way round: short turns are cheap, and catch more noise
            self._turn(entrant)
            self._turn(best)
            usual.append(best.turns[-1])
        entrant.relative = best.relative * min(entrant.turns) / min(usual)

    def _fail(self, entrant: _Entrant, reason: str, name: str) -> None:
        self._failed.append(Trial(config=fields_of(entrant.config), predicted=entrant.predicted, reason=reason))
        self._progress.tell(f"  {name}: {reason}")

    def _call(self, entrant: _Entrant) -> Callable[[], object]:
        config = None if entrant is self._entrants[0] else entrant.config
        return lambda: self._work.run(config)

    def _times(self, seconds: float) -> int:
        turn = min(self._clock.turn_s, self._budget * TURN_SHARE)
        return max(1, math.ceil(turn / max(seconds, 1e-6)))

    def _turn(self, entrant: _Entrant) -> None:
        """Time a config once more, short calls repeated."""
        call = self._call(entrant)
        # The first time tells how often a call is to be repeated.
        seconds = entrant.turns[-1] if entrant.turns else self._clock.seconds(call, 1)
        times = self._times(seconds)
        if times > 1 or entrant.turns:
            seconds = self._clock.seconds(call, times)
        entrant.turns.append(seconds)

    def _rounds(self) -> _Entrant:
        """Let the best and the default take turns; return the winner, with the turns of the rounds alone."""
        default, *others = self._entrants
        best = min(one.relative for one in self._entrants)
        near = sorted((one for one in others if one.relative <= NEAR * best), key=lambda one: one.relative)
        finalists = near[:FINALISTS]
        while finalists and self._round_s([default, *finalists]) * LEAST_ROUNDS > self._left:
            finalists.pop()  # rather one that can be told from the default than three that cannot
        if not finalists:
            return default
        entrants = [default, *finalists]
        firsts = [len(one.turns) for one in entrants]
        for number in range(MOST_ROUNDS):
            if number >= LEAST_ROUNDS and self._round_s([default, *finalists]) > self._left:
                break
            for one in entrants[:: 1 if number % 2 == 0 else -1]:
                self._turn(one)
        for one, first in zip(entrants, firsts, strict=True):
            one.turns = one.turns[first:]
        return self._winner(default, finalists)

    def _winner(self, default: _Entrant, finalists: list[_Entrant]) -> _Entrant:
        """Return the finalist with the largest gain over the default in the rounds, or the default."""
        winner, most = default, GAIN
        for one in finalists:
            quotients = np.array(default.turns) / np.array(one.turns)
            medians = float(np.median(default.turns) / np.median(one.turns))
            gain, faster = min(float(np.median(quotients)), medians), float(np.mean(quotients > 1))
            name = changed(one.config, self._default)
            self._progress.tell(f"  in rounds: {name}, {gain:.3f}x the default's speed, faster in {faster:.0%}")
            if gain >= most and faster >= SHARE:
                winner, most = one, gain
        return winner

    def _round_s(self, entrants: list[_Entrant]) -> float:
        """Return the seconds that a round takes."""
        return sum(one.turns[-1] * self._times(one.turns[-1]) for one in entrants)

    def _outcome(self, winner: _Entrant) -> Outcome:
        default = self._entrants[0]
        seconds, usual = (float(np.median(one.turns)) for one in (winner, default))
        name = changed(winner.config, self._default)
        kept = "the default stays" if winner is default else f"{usual / seconds:.2f}x the default's speed: {name}"
        self._progress.tell(f"  {kept}; {len(default.turns)} rounds, {self._spent:.3g} s")
        return Outcome(
            config=fields_of(winner.config),
            seconds=seconds,
            default_seconds=usual,
            trials=(*(_trial(one) for one in self._entrants), *self._failed),
            space=1 + len(self._others),
            budget=self._budget,
            spent=self._spent,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _trial(entrant: _Entrant) -> Trial:
    p20, median, p80 = np.quantile(entrant.turns, (0.2, 0.5, 0.8)).tolist()
    return Trial(config=fields_of(entrant.config), predicted=entrant.predicted, seconds=median, p20=p20, p80=p80)


def _line(error: Exception) -> str:
    """Return the kind and the first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".removesuffix(": ")
