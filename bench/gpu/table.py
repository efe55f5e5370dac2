"""Rows as text: a line each while they come, and at the end a table of figures, failures and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench.gpu.report import Row, Setup
from bench.gpu.requirements import REQUIREMENTS, Requirement

_MET = {True: "yes", False: "NO", None: "-"}
#: Characters of a reason that the summary shows; the file has all of them.
REASON = 300


def about(facts: Row) -> str:
    """Return the device and the versions."""
    memory = f", {facts['device_memory'] / 2**30:.0f} GiB" if facts["device_memory"] else ""
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version is not None)
    return f"{facts['device']}{memory}{driver}; {versions}; commit {facts['commit'] or 'unknown'}"


def line(one: Row) -> str:
    """Return a row as a line."""
    head = f"{one['section']:<12} {one['case']}: {one['name']}"
    if one["kind"] in ("skip", "failure"):
        return f"{head}: {'skipped' if one['kind'] == 'skip' else 'FAILED'}: {one['reason']}"
    if one["kind"] == "check":
        return f"{head}: {'holds' if one['met'] else 'DOES NOT HOLD'}{_errors(one)}"
    asked = "" if one["required"] is None else f", asked {one['required']}, met: {_MET[one['met']]}"
    return f"{head}: {number(one['value'])} {one['unit']}{asked}"


def _errors(one: Row) -> str:
    if one["reason"]:
        return f": {one['reason']}"
    errors = (one["detail"] or {}).get("errors", {})
    return "".join(f", {name} off by {found['error']:.1e}" for name, found in errors.items())


def style(one: Row) -> str:
    """Return the colour of a row."""
    if one["kind"] == "failure" or one["met"] is False:
        return "red"
    return "yellow" if one["kind"] == "skip" else ""


def number(value: float) -> str:
    """Return three significant digits, without an exponent."""
    return f"{value:.3g}" if 0.001 <= abs(value) < 1000 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"


def failures(rows: Iterable[Row]) -> list[Row]:
    """Return checks that do not hold, figures that miss what is required, and sections that broke."""
    return [one for one in rows if one["kind"] == "failure" or one["met"] is False]


def missing(rows: Iterable[Row], sections: Sequence[str], setup: Setup) -> list[Requirement]:
    """Return what is required of the backend in some sections and was not measured."""
    judged = {(one["section"], one["name"]) for one in rows if one["kind"] == "figure" and one["met"] is not None}
    asked = [one for one in REQUIREMENTS if one.now and one.backend == setup.backend and one.section in sections]
    return [one for one in asked if (one.section, one.figure) not in judged]


def of(rows: Iterable[Row]) -> Table:
    """Return the table of figures."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("section", "case", "figure", "value", "asked", "met"):
        made.add_column(name, justify="right" if name == "value" else "left", no_wrap=True)
    for one in rows:
        if one["kind"] == "figure":
            value = f"{number(one['value'])} {one['unit']}"
            made.add_row(one["section"], one["case"], one["name"], value, one["required"] or "", _MET[one["met"]])
    return made


def summary(console: Console, rows: Sequence[Row], lacking: Sequence[Requirement], seconds: float) -> None:
    """Print the table, and everything that is wrong or absent, last what matters most."""

    def told(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    console.print(of(rows))
    skipped = [one for one in rows if one["kind"] == "skip"]
    broken = failures(rows)
    # A peer that is absent is skipped in every mode: it is told once.
    for text, colour in dict.fromkeys((line(one)[:REASON], style(one)) for one in skipped + broken):
        told(text, colour)
    for asked in lacking:
        told(f"{asked.section}: {asked.figure} ({asked.text}): required, not measured", "red")
    checks = [one for one in rows if one["kind"] == "check"]
    held = sum(one["met"] for one in checks)
    told(f"{held} of {len(checks)} checks hold, {len(broken)} failures, {len(skipped)} skipped, "
         f"{len(lacking)} required figures not measured, in {seconds:.0f} s")  # fmt: skip
