"""The search, on a scripted clock: who wins, who cannot, and what it may cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsemoc.backends import Result
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.testing.problems import Chunks, Problem, RoutingSpec, Segment, Stream
from sparsemoc.tuning.candidates import cannot_tune
from sparsemoc.tuning.outcome import Outcome, Trial
from sparsemoc.tuning.progress import Progress
from sparsemoc.tuning.search import MOST_ROUNDS, NotTuned, search
from tests.tuning.planted import Planted, ScriptedClock, works

PROBLEM = Problem(
    RoutingSpec(chunks=Chunks(size=8), top_k=2, anchors=("chunk",)),
    (Stream((Segment("video", 70),)),),
    heads=4,
    kv_heads=2,
    head_dim=4,
    v_head_dim=4,
)
OPERATIONS = ("pool", "route", "attend", "attend_backward")


def found(
    backend: Planted, operation: str = "attend", budget_s: float = 1000.0, max_configs: int = 16, turn_s: float = 0.0
) -> tuple[Outcome, list[str]]:
    """Return the outcome of a search, and its lines."""
    lines: list[str] = []
    work = works(PROBLEM, backend)[operation]
    clock = ScriptedClock(backend, turn_s)
    return search(work, budget_s, max_configs, Progress(lines.append), clock), lines


def trial(outcome: Outcome, number: int) -> Trial:
    (one,) = [one for one in outcome.trials if one.config == {"number": number}]
    return one


def wrong(results: Any) -> Any:
    """One row, in a head that is not looked at, is a little off."""
    if isinstance(results, Result):
        out = results.out.copy()
        out[0, 40, 1] *= 1.1
        return Result(out, results.lse)
    if isinstance(results, tuple):
        dk = results[1].copy()
        dk[0, 40, 1] *= 1.3
        return results[0], dk, results[2]
    results = results.copy()
    if results.dtype == np.int32:
        results[0, 1, 40] = -1
    else:
        results[0, 1, 4] *= 1.1
    return results


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_fastest_right_config_wins(operation: str) -> None:
    backend = Planted({0: 1.0, 1: 0.1, 2: 0.5, 3: 2.0, 4: 0.8}, {1: wrong})
    outcome, lines = found(backend, operation)
    assert outcome.config == {"number": 2}
    assert (outcome.seconds, outcome.default_seconds) == pytest.approx((0.5, 1.0))
    assert outcome.space == 5
    assert "wrong: " in str(trial(outcome, 1).reason)
    assert trial(outcome, 1).seconds is None
    assert [trial(outcome, n).seconds for n in (0, 2, 3, 4)] == pytest.approx([1.0, 0.5, 2.0, 0.8])
    assert outcome.trials[0].config == {"number": 0}
    assert Outcome.from_dict(outcome.to_dict()) == outcome
    assert any("2.00x the default's speed: number=2" in line for line in lines)


def test_a_slower_config_never_wins() -> None:
    outcome, lines = found(Planted({0: 1.0, 1: 1.05, 2: 1.5}))
    assert outcome.config == {"number": 0}
    assert outcome.seconds == outcome.default_seconds == 1.0
    assert "the default stays" in lines[-1]


def test_one_lucky_look_is_not_enough() -> None:
    """A config that was fast when it was first looked at, and is as the default in the rounds."""
    outcome, _ = found(Planted({0: 1.0, 1: [0.2, 0.2, *([1.0] * 40)]}))
    assert outcome.config == {"number": 0}
    assert trial(outcome, 1).seconds == 1.0


@pytest.mark.parametrize(
    ("turns", "wins"),
    [
        ([0.99], False),  # less than 2 %
        ([0.95], True),
        ([0.90, 1.01, 0.90, 0.90], True),  # 3 of 4 rounds
        ([0.5, 0.5, 0.5, 1.01, 1.01], False),  # 60 % of the rounds
    ],
)
def test_what_a_winner_needs(turns: list[float], wins: bool) -> None:
    outcome, _ = found(Planted({0: 1.0, 1: turns}), budget_s=43.0)
    assert outcome.config == {"number": int(wins)}


def test_turns_go_backwards_every_other_round() -> None:
    backend = Planted({0: 1.0, 1: 0.9})
    found(backend)
    rounds = [number for _, number in backend.calls[-2 * MOST_ROUNDS :]]
    assert rounds[:6] == [0, 1, 1, 0, 0, 1]
    assert rounds.count(0) == rounds.count(1) == MOST_ROUNDS


def test_short_calls_are_repeated_in_turn_with_the_best() -> None:
    backend = Planted({0: 0.001, 1: 0.0005, 2: 0.0008})
    outcome, _ = found(backend, turn_s=0.1)
    assert outcome.config == {"number": 1}
    assert outcome.seconds == pytest.approx(0.0005)
    assert outcome.spent > 0.1 * 2 * MOST_ROUNDS


def test_the_best_is_timed_anew_beside_each_config() -> None:
    """The machine was quiet while the default was timed first, and then no longer."""
    outcome, _ = found(Planted({0: [0.5, 0.5, *([1.0] * 40)], 1: 0.8}))
    assert outcome.config == {"number": 1}


def test_few_enter_the_rounds() -> None:
    backend = Planted({0: 1.0, 1: 0.5, 2: 0.51, 3: 0.52, 4: 0.53, 5: 0.7})
    found(backend)
    assert {number for _, number in backend.calls[-4 * MOST_ROUNDS :]} == {0, 1, 2, 3}


def raises(error: BaseException) -> Any:
    def fault(results: Any) -> Any:
        raise error

    return fault


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such tile\nand more"), "ValueError: no such tile"),
        (MemoryError(), "MemoryError"),
        (UnsupportedError("toy: needs 4 warps"), "UnsupportedError: toy: needs 4 warps"),
    ],
)
def test_a_config_that_raises_is_kept_with_its_reason(error: Exception, reason: str) -> None:
    outcome, lines = found(Planted({0: 1.0, 1: 0.1, 2: 0.5}, {1: raises(error)}))
    assert outcome.config == {"number": 2}
    assert trial(outcome, 1).reason == reason
    assert any(f"number=1: {reason}" in line for line in lines)


def test_a_person_can_break_off() -> None:
    with pytest.raises(KeyboardInterrupt):
        found(Planted({0: 1.0, 1: 0.5}, {1: raises(KeyboardInterrupt())}))


def test_an_error_of_the_default_is_the_callers() -> None:
    with pytest.raises(ValueError, match="bad layout"):
        found(Planted({0: 1.0, 1: 0.5}, {0: raises(ValueError("bad layout"))}))


def test_the_cost_model_prunes_and_ranks() -> None:
    backend = Planted(
        dict.fromkeys(range(6), 1.0), predicted={0: 1.0, 1: 3.0, 2: 2.0, 4: 0.5}, refused={4: "needs 300 KB, has 100"}
    )
    outcome, lines = found(backend, max_configs=4)
    tried = list(dict.fromkeys(number for _, number in backend.calls))
    assert tried == [0, 2, 1, 3]
    assert trial(outcome, 4).reason == "needs 300 KB, has 100"
    assert (trial(outcome, 2).predicted, trial(outcome, 3).predicted) == (2.0, None)
    assert [one.config["number"] for one in outcome.trials] == [0, 2, 1, 3, 4]
    assert any("not tried: number=4: needs 300 KB, has 100" in line for line in lines)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_max_configs_counts_the_default(most: int) -> None:
    backend = Planted({0: 1.0, 1: 0.9, 2: 0.8, 3: 0.7})
    outcome, _ = found(backend, max_configs=most)
    assert {number for _, number in backend.calls} == set(range(most))
    assert outcome.config == {"number": most - 1}
    assert len(outcome.trials) == most


@pytest.mark.parametrize("budget", [10.0, 20.0, 50.0, 200.0])
def test_the_budget_holds(budget: float) -> None:
    backend = Planted(dict.fromkeys(range(40), 1.0))
    outcome, lines = found(backend, budget_s=budget, max_configs=40)
    assert outcome.spent <= budget
    assert backend.elapsed == outcome.spent + 1.0  # the default's first call, which the caller waits for anyway
    assert len(outcome.trials) < 40 or budget == 200.0
    assert any("left out for lack of time" in line for line in lines) == (len(outcome.trials) < 40)


def test_a_config_that_takes_long_to_judge_ends_the_search() -> None:
    """The first config compiles for 50 seconds: the next, expected to do so too, is not begun."""
    backend = Planted({0: 1.0, 1: [50.0, *([0.5] * 100)], 2: 0.1})
    outcome, _ = found(backend, budget_s=100.0)
    assert outcome.config == {"number": 1}
    assert len(outcome.trials) == 2


def test_a_budget_for_the_default_alone_finds_nothing_out() -> None:
    backend = Planted({0: 5.0, 1: 0.1})
    with pytest.raises(NotTuned, match=r"budget of 3 s for this operation is too small .* Hint: it takes about 50 s"):
        found(backend, budget_s=3.0)
    assert {number for _, number in backend.calls} == {0}


def test_a_wrong_default_is_said_aloud() -> None:
    backend = Planted({0: 1.0, 1: 0.5}, {0: lambda r: Result(r.out * 1.1, r.lse)})
    lines: list[str] = []
    work = works(PROBLEM, backend)["attend"]
    with pytest.raises(NotTuned, match=r"the default's results differ from the reference: out\[0, 0:") as caught:
        search(work, 100.0, 4, Progress(lines.append), ScriptedClock(backend))
    assert any("NOT TUNED" in line and str(caught.value) in line for line in lines)
    assert {number for _, number in backend.calls} == {0}


def test_lines_say_what_is_tried() -> None:
    _, lines = found(Planted({0: 1.0, 1: 0.5}))
    assert lines[0].startswith("tune planted attend: 70 tokens, 4/2 heads x 4, float32; 2 configs, 1e+03 s")
    assert "1: default, 1 s" in lines[1]
    assert "2/2: number=1, 500 ms, 2.00x the default's speed; best so far 2.00x (number=1)" in lines[2]
    assert "s left" in lines[2]
    assert lines[3] == "  in rounds: number=1, 2.000x the default's speed, faster in 100%"
    assert lines[4].startswith("  2.00x the default's speed: number=1; 31 rounds")


def test_nothing_to_tune() -> None:
    backend = Planted({0: 1.0, 1: 0.5}, operations=("attend",))
    assert cannot_tune(works(PROBLEM, backend)["pool"]) == "nothing to tune: the search space holds the default alone"
    assert cannot_tune(works(PROBLEM, backend)["attend"]) is None


def test_arrays_that_cannot_be_judged() -> None:
    q = PROBLEM.arrays.q.copy()
    q[0, 3] = np.nan
    broken = PROBLEM.with_arrays(q=q)
    for operation in ("route", "attend", "attend_backward"):
        reason = cannot_tune(works(broken, Planted())[operation])
        assert reason == "the arrays hold NaN or infinity, so that results cannot be judged"


def test_traced_arrays_hold_no_data() -> None:
    jax = pytest.importorskip("jax", reason="tracers")
    work = works(PROBLEM, Planted())["pool"]
    reasons: list[str | None] = []

    def traced(k: Any) -> Any:
        reasons.append(cannot_tune(replace(work, arguments=(k, None))))
        return k

    jax.jit(traced)(work.arguments[0])
    assert "hold no data" in str(reasons[0])


def test_configs_that_are_no_dataclasses() -> None:
    backend = Planted()
    backend.default_config = lambda problem: {"number": 0}  # type: ignore[method-assign, assignment, return-value]
    assert "are no dataclasses" in str(cannot_tune(works(PROBLEM, backend)["attend"]))
