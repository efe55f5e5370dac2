"""What `sparsemoc tune` prints: what came of each operation, what was not measured and why, where results are."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsemoc.cli import results
from sparsemoc.tuning.key import Environment, Key
from sparsemoc.tuning.outcome import Outcome
from sparsemoc.tuning.problems import NamedProblem
from sparsemoc.tuning.progress import duration
from sparsemoc.tuning.session import Session
from sparsemoc.tuning.store import Store

#: Where a result holds, and for which problems.
Found = tuple[Environment, Key]
#: Reasons to show of an operation; the others are in its file.
MOST_REASONS = 5


def print_tuned(console: Console, session: Session, found: list[tuple[NamedProblem, list[Found]]]) -> None:
    """Print what came of each problem, where it was written, and what was not measured and why."""
    for problem, places in found:
        if places:
            console.print(_table(session, problem, places))
        else:
            line = f"{problem.name}: as the problems above, their results serve it."
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for (_, key), outcome in session.outcomes.items():
        reasons = results.refusals(outcome)
        for reason in reasons[:MOST_REASONS]:
            console.print(f"{results.operation_of(key)}: {reason}", style="dim", markup=False, highlight=False)
        if len(reasons) > MOST_REASONS:
            console.print(f"{results.operation_of(key)}: and {len(reasons) - MOST_REASONS} more", style="dim")
    for line in _summary(session):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _summary(session: Session) -> Iterator[str]:
    if session.outcomes:
        yield f"Measured for {session.spent:.1f} s of {session.budget_s:g} s."
    if session.reused:
        nothing = "" if session.outcomes else ": nothing was measured"
        yield f"Reused {len(session.reused)} of earlier runs{nothing}. --again measures anew."
    if any("budget" in reason for reason in session.skipped.values()):
        yield "The budget was too small for all. Hint: run it again, what is there is kept; or a larger --budget."
    if session.unsaved is not None:
        yield f"Not kept: {session.unsaved}."
    elif session.outcomes:
        yield f"Written to {Store().folder}."


def _table(session: Session, problem: NamedProblem, places: list[Found]) -> Table:
    first, key = places[0]
    title = f"{problem.name}, {first.backend} on {first.device}: serves {results.served(key)}"
    table = Table(title=Text(title), title_justify="left")
    for column in ("operation", "default", "tuned", "gain", "config", "configs tried"):
        table.add_column(column, overflow="fold")
    for where, key in places:
        reason = session.skipped.get((where, key))
        outcome = session.outcomes.get((where, key))
        if reason is not None:
            cells = ["", "", "", "the default", f"skipped: {reason}"]
        elif outcome is not None:
            cells = [*_times(outcome), results.counts(outcome)]
        else:
            kept = Store().load(where, key)
            note = "reused" if kept is None else f"reused, measured {results.age(kept)} ago"
            cells = [*(_times(kept) if kept is not None else ("", "", "", "")), note]
        table.add_row(*map(Text, (results.operation_of(key), *cells)))
    return table


def _times(outcome: Outcome) -> tuple[str, str, str, str]:
    default, tuned = duration(outcome.default_seconds), duration(outcome.seconds)
    return default, tuned, results.gain(outcome), results.changes(outcome)
