"""Schedules: which spec holds at which step, the paper's recipe, the written form, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.training import Schedule, Stage

BASE = moc.RoutingSpec(chunks=moc.Chunks(size=64, align="frame"), top_k=4, anchors=("text", "shot"), causal="chunk")
DROPOUT = moc.RouteDropout(off=0.5, into=1.5, into_max=2)
FULL = Schedule(
    BASE,
    (
        Stage(0, chunk_size=None, top_k=(2, 3), dropout=DROPOUT),
        Stage(10, chunk_size=128),
        Stage(11, top_k=1, dropout=None),
        Stage(500),
    ),
)


def test_stages_begin_exactly_at_their_step() -> None:
    wanted = {
        0: replace(BASE, chunks=moc.Chunks(None, align="frame"), top_k=(2, 3), dropout=DROPOUT),
        10: replace(BASE, chunks=moc.Chunks(128, align="frame")),
        11: replace(BASE, top_k=1),
        500: BASE,
    }
    found = {step: FULL.spec(step) for step in (0, 9, 10, 11, 499, 500, 10**9)}
    assert found == {step: wanted[max(start for start in wanted if start <= step)] for step in found}
    assert [FULL.stage(step).step for step in (0, 9, 10, 11, 499, 500)] == [0, 0, 10, 11, 11, 500]
    assert FULL.spec(np.int64(10)) is FULL.spec(10)  # type: ignore[arg-type]


def test_equal_specs_are_one_object() -> None:
    schedule = Schedule(BASE, (Stage(0, 32), Stage(5), Stage(8, 32), Stage(9, 64)))
    assert schedule.spec(0) is schedule.spec(4) is schedule.spec(8)
    assert schedule.spec(5) is schedule.spec(9) is BASE
    assert len({id(spec) for spec in schedule.specs}) == 2


def test_the_papers_schedule() -> None:
    schedule = Schedule.paper()
    sizes = {step: schedule.spec(step).chunks.size for step in (0, 4999, 5000, 9999, 10_000, 14_999, 15_000, 20_000)}
    assert list(sizes.values()) == [10240, 10240, 5120, 5120, 2560, 2560, 1280, 1280]
    assert {spec.top_k for spec in schedule.specs} == {5}
    assert schedule.spec(0).anchors == ("text", "shot")
    assert schedule.spec(0).causal == "chunk"
    own = Schedule.paper(replace(BASE, dropout=DROPOUT), boundaries=(1, 2, 3))
    assert [own.spec(step) for step in range(4)] == [
        replace(BASE, chunks=moc.Chunks(size, align="frame"), top_k=5, dropout=DROPOUT)
        for size in (10240, 5120, 2560, 1280)
    ]


def test_halving() -> None:
    schedule = Schedule.halving(BASE, first=96, boundaries=(3, 7))
    assert [schedule.spec(step).chunks.size for step in range(9)] == [96] * 3 + [48] * 4 + [24] * 2
    assert schedule.spec(0) == replace(BASE, chunks=moc.Chunks(96, align="frame"))
    assert Schedule.halving(BASE, first=9, boundaries=()).specs[0].chunks.size == 9


def test_a_stage_may_be_a_table() -> None:
    tables = (
        {"step": 0, "chunk_size": None, "top_k": [2, 3], "dropout": {"off": 0.5, "into": 1.5, "into_max": 2}},
        {"step": 10, "chunk_size": 128},
        {"step": 11, "top_k": 1, "dropout": None},
        {"step": 500},
    )
    schedule = Schedule(BASE, tables)  # type: ignore[arg-type]
    assert schedule == FULL
    assert hash(schedule) == hash(FULL)


def test_json_is_whole_and_comes_back_the_same() -> None:
    text = FULL.to_json()
    table = json.loads(text)
    assert list(table) == ["version", "base", "stages"]
    assert table["version"] == 1
    assert moc.RoutingSpec.from_json(json.dumps(table["base"])) == BASE
    assert table["stages"][:3] == [
        {"step": 0, "chunk_size": "segment", "top_k": [2, 3], "dropout": {"off": 0.5, "into": 1.5, "into_max": 2}},
        {"step": 10, "chunk_size": 128, "top_k": "keep", "dropout": "keep"},
        {"step": 11, "chunk_size": "keep", "top_k": 1, "dropout": None},
    ]
    assert Schedule.from_json(text) == FULL
    assert Schedule.from_json(text.encode()).to_json() == text
    assert Schedule.from_json('{"base": {}, "stages": [{"step": 0}]}') == Schedule(moc.RoutingSpec(), (Stage(0),))


def test_the_table_shows_what_holds() -> None:
    assert str(FULL) == (
        "from step  chunk size   top_k  dropout (training=True only)\n"
        "        0     segment  (2, 3)  off 0.5, into 1.5, into_max 2\n"
        "       10         128       4  none\n"
        "       11          64       1  none\n"
        "      500          64       4  none"
    )


def test_the_repr_rebuilds_it() -> None:
    names = {name: getattr(moc, name) for name in ("Chunks", "RouteDropout", "RoutingSpec")}
    assert eval(repr(FULL), {"Schedule": Schedule, "Stage": Stage} | names) == FULL


def test_route_dropout_acts_in_training_alone() -> None:
    spec = Schedule(replace(BASE, dropout=moc.RouteDropout(off=1.0, into_max=0)), (Stage(0, 4),)).spec(0)
    random = np.random.default_rng(0)
    q, k = (random.standard_normal((1, 200, 1, 8)) for _ in range(2))
    stream = moc.Stream((moc.Segment("video", 100), moc.Segment("video", 100)))
    plain = moc.route(q, k, replace(spec, dropout=None), stream=stream, backend="reference").selected
    kept = moc.route(q, k, spec, stream=stream, backend="reference").selected
    np.testing.assert_array_equal(kept, plain)
    dropped = moc.route(q, k, spec, stream=stream, training=True, seed=1, backend="reference").selected
    assert 0 < (dropped >= 0).sum() < (plain >= 0).sum()


def from_json(base: object = None, stages: object = None, **more: object) -> Schedule:
    table = {"base": base or {}, "stages": [{"step": 0}] if stages is None else stages} | more
    return Schedule.from_json(json.dumps(table))


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Stage(-1), "Stage: step must be a whole number >= 0, got -1 (int)."),
    (
        lambda: Stage(0, chunk_size=0),
        "Stage: chunk_size must be a whole number >= 1, got 0 (int). Use None for one chunk per segment.",
    ),
    (
        lambda: Stage(0, chunk_size="keeep"),
        "Stage: chunk_size must be a whole number >= 1, got 'keeep' (str). Did you mean \"keep\"?",
    ),
    (
        lambda: Stage(0, top_k=-2),
        "Stage: RoutingSpec: top_k must be a whole number >= 0, got -2 (int). "
        "Use one number, or a tuple with one per query head.",
    ),
    (
        lambda: Stage(0, dropout=0.5),  # type: ignore[arg-type]
        'Stage: dropout must be a RouteDropout, None or "keep", got 0.5 (float). '
        "Hint: RouteDropout(off=0.5, into=1.0).",
    ),
    (
        lambda: Schedule("spec", (Stage(0),)),  # type: ignore[arg-type]
        "Schedule: base must be a RoutingSpec, got 'spec' (str). Hint: RoutingSpec(top_k=5).",
    ),
    (
        lambda: Schedule(BASE, ()),
        "Schedule: stages must be a non-empty tuple of Stage, got () (tuple). "
        "Hint: (Stage(0, chunk_size=10240), Stage(5000, chunk_size=5120)).",
    ),
    (
        lambda: Schedule(BASE, (3,)),  # type: ignore[arg-type]
        "Schedule: stages must hold Stage values, got 3 (int). Hint: Stage(5000, chunk_size=5120).",
    ),
    (
        lambda: Schedule(BASE, (Stage(1),)),
        "Schedule: stages[0] must start at step 0, got step 1. Hint: Stage(0) is the base.",
    ),
    (
        lambda: Schedule(BASE, (Stage(0), Stage(5), Stage(5))),
        "Schedule: the steps of stages must ascend strictly, got 5 after 5.",
    ),
    (
        lambda: Schedule(BASE, (Stage(0), {"step": 5, "chunksize": 3})),  # type: ignore[arg-type]
        "Schedule: unknown key 'stages[1].chunksize'. Did you mean \"chunk_size\"? "
        "The keys here are step, chunk_size, top_k, dropout.",
    ),
    (
        lambda: Schedule(replace(BASE, chunks=moc.Chunks(bounds=(0, 9))), (Stage(0), Stage(5, 3))),
        "Schedule: stages[1] must fit the base: Chunks: bounds must stand alone, got size=3 (int), align=None, "
        "tail='balanced' beside it. Hint: leave these out; they do not apply to given cuts.",
    ),
    (lambda: FULL.spec(-1), "Schedule: step must be a whole number >= 0, got -1 (int)."),
    (
        lambda: Schedule.halving(BASE, first=10, boundaries=(5, 6)),
        "Schedule.halving: first must halve 2 times, once for each boundary, got 10. Hint: a multiple of 4.",
    ),
    (
        lambda: Schedule.halving(BASE, first=10, boundaries=5),  # type: ignore[arg-type]
        "Schedule.halving: boundaries must be a tuple of steps, got 5 (int). Hint: boundaries=(5000, 10000, 15000).",
    ),
    (
        lambda: Schedule.paper(boundaries=(1, 2)),  # type: ignore[arg-type]
        "Schedule.paper: boundaries must be three steps, got (1, 2) (tuple). "
        "Hint: Schedule.halving takes any number of them.",
    ),
    (
        lambda: from_json(stagess=[]),
        "Schedule.from_json: unknown key 'stagess'. Did you mean \"stages\"? The keys here are version, base, stages.",
    ),
    (
        lambda: from_json({"topk": 3}),
        "Schedule.from_json: base: unknown key 'topk'. Did you mean \"top_k\"? The keys here are version, stream, "
        "chunks, top_k, anchors, causal, routable, dense_queries, dense_scope, unit, dropout.",
    ),
    (
        lambda: from_json(stages=[{"step": 0, "dropout": {"of": 1}}]),
        "Schedule.from_json: Schedule: unknown key 'stages[0].dropout.of'. Did you mean \"off\"? "
        "The keys here are off, into, into_max.",
    ),
    (
        lambda: from_json(stages=[{"chunk_size": 3}]),
        "Schedule.from_json: Schedule: key 'stages[0].step' must be given, got {'chunk_size': 3} (dict).",
    ),
    (
        lambda: from_json(version=2),
        "Schedule.from_json: version must be 1, got 2 (int). Hint: another sparsemoc may read it.",
    ),
]


@pytest.mark.parametrize(("call", "text"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(moc.SpecError) as raised:
        call()
    assert str(raised.value) == text
