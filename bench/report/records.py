"""Records of the benchmarks, read from JSON lines: whole, or an error that names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsemoc.spec.errors import SpecError, describe

Record = dict[str, Any]

#: The schema of problems and of the crossover grid; records of `bench.cpu` carry no schema.
SCHEMA = 2

#: What the problem of a record of the crossover grid begins with: crossover/<tokens>/<top_k>.
CROSSOVER = "crossover/"

#: Fields that every record of this schema has; any but the last few may not be null.
_FIELDS = (
    "command", "time", "quick", "problem", "mode", "tokens", "queries", "heads", "problem_heads", "kv_heads",
    "head_dim", "v_head_dim", "dtype", "chunk", "chunks", "top_k", "pairs", "density", "pair_ratio", "contender",
    "kind", "computes", "useful_flops", "machine", "versions",
)  # fmt: skip
_NULLABLE = (
    "commit",
    "config_source",
    "seconds",
    "routing",
    "tflops",
    "roofline",
    "dense",
    "memory",
    "refcheck",
    "reason",
)
#: Fields that a record of `bench.cpu` must have to be read.
_CPU_FIELDS = ("case", "mode", "tokens", "heads", "head_dim", "dtype", "spec", "pairs", "pair_ratio", "backend",
               "seconds", "cpu", "threads", "versions", "time", "quick")  # fmt: skip


def read(files: Sequence[Path]) -> Iterator[Record]:
    """Yield the records of files of JSON lines, in order; empty lines are none.

    Raises:
        SpecError: a file cannot be read, or a line is not a whole record of a schema that is known.
    """
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"bench.report: {path} must be a file of JSON lines, but {error}.") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _record(line, f"bench.report: {path}, line {number}")


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{where} must be a JSON record, but {error}. "
            "Hint: a run that was ended may leave half a last line; delete it."
        ) from None
    if not isinstance(record, dict):
        raise SpecError(f"{where} must be a JSON object, got {describe(record)}.")
    if "schema" in record and record["schema"] != SCHEMA:
        raise SpecError(f"{where} must be of schema {SCHEMA}, got {describe(record['schema'])}.")
    fields = (*_FIELDS, *_NULLABLE) if is_problem(record) else _CPU_FIELDS
    missing = [name for name in fields if name not in record]
    empty = [name for name in fields if name not in _NULLABLE and record.get(name) is None]
    if missing or empty:
        raise SpecError(f"{where} must have the fields {', '.join(missing or empty)}, which are absent or null.")
    if is_problem(record) and record["seconds"] is None and not record["reason"]:
        raise SpecError(f"{where} must have a time or a reason why there is none.")
    return record


def is_problem(record: Record) -> bool:
    """Return whether a record is of the schema of problems, else of `bench.cpu`."""
    return "schema" in record


def is_crossover(record: Record) -> bool:
    """Return whether a record is a point of the crossover grid."""
    return is_problem(record) and str(record["problem"]).startswith(CROSSOVER)


def device(record: Record) -> str:
    """Return what it was measured on."""
    return str(record["machine"]["device"] if is_problem(record) else record["cpu"])


def median(record: Record) -> float | None:
    """Return its median seconds, None where there are none."""
    return None if record["seconds"] is None else float(record["seconds"]["median"])
