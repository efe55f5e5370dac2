"""Planted wrong implementations: faults of route dropout."""

# ruff: noqa: D102  the steps that variants override are described in OracleImplementation
from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparsemoc.testing import oracle, oracle_random
from sparsemoc.testing.oracle_rules import Routes
from sparsemoc.testing.planted import Planted
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.sample import Sample


class CounterIsQueryNumber(Planted):
    """Dropout counts by the row of the query, not by its stream position."""

    caught_by = "dropout"

    def select(self, sample: Sample) -> Routes:
        units = [replace(unit, first=unit.first - sample.q_start) for unit in sample.units]
        wrong = replace(sample)
        wrong.__dict__["units"] = units
        wrong.__dict__["candidates"] = sample.candidates
        return oracle.select(wrong, oracle.scores(wrong))


class CounterIsLocalHead(Planted):
    """Dropout forgets head_start: the words depend on the sharding."""

    caught_by = "dropout"

    def samples(self, problem: Problem) -> list[Sample]:
        return [replace(sample, head_start=0) for sample in problem.samples()]


class DropInAfterDropOff(Planted):
    """Drop-in may bring back what drop-off took."""

    caught_by = "dropout"

    def drop(self, *arguments: Any) -> list[int]:
        dropout, routed, candidates, place, seed = arguments
        kept = oracle_random.drop(replace(dropout, into=0.0), routed, candidates, place, seed)
        return oracle_random.drop(replace(dropout, off=0.0), kept, candidates, place, seed)


class SeedIs32Bits(Planted):
    """The high word of the seed is lost."""

    caught_by = "dropout"

    def drop(self, *arguments: Any) -> list[int]:
        dropout, routed, candidates, place, seed = arguments
        return oracle_random.drop(dropout, routed, candidates, place, seed % 2**32)
