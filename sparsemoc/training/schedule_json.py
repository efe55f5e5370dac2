"""Schedules as JSON, in the form of the specs: written whole, read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sparsemoc.spec import serial
from sparsemoc.spec.routing import RouteDropout
from sparsemoc.training.schedule import Schedule, Stage

_PER_SEGMENT = "segment"


def to_json(schedule: Schedule) -> str:
    """Return a schedule as JSON text: `version: 1`, the base spec, and every field of every stage."""
    table = {
        "version": serial.VERSION,
        "base": json.loads(schedule.base.to_json()),
        "stages": [_table_of(stage) for stage in schedule.stages],
    }
    return json.dumps(table, indent=2, allow_nan=False)


def from_json(text: str | bytes) -> Schedule:
    """Return the schedule of a JSON text. See `Schedule.from_json` for what is refused."""
    return serial.read(text, "Schedule.from_json", "JSON", _schedule)


def stage_of(value: Mapping[str, Any], path: str) -> Stage:
    """Return the stage of a table of its arguments; `path` names its place in errors."""
    table = dict(value)
    if table.get("chunk_size") == _PER_SEGMENT:
        table["chunk_size"] = None
    if isinstance(table.get("dropout"), dict):
        table["dropout"] = serial.of_fields(RouteDropout, table["dropout"], f"{path}.dropout")
    return serial.of_fields(Stage, table, path, ("step",))


def _schedule(value: object) -> Schedule:
    table = serial.checked_table(serial.versioned(value), "", ("version", "base", "stages"), ("base", "stages"))
    table["base"] = serial.built(serial.spec_of, {"value": table["base"]}, "base")
    return Schedule(**table)


def _table_of(stage: Stage) -> dict[str, Any]:
    size = _PER_SEGMENT if stage.chunk_size is None else stage.chunk_size
    dropout = asdict(stage.dropout) if isinstance(stage.dropout, RouteDropout) else stage.dropout
    return {"step": stage.step, "chunk_size": size, "top_k": stage.top_k, "dropout": dropout}
