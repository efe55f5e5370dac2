"""`sparsemoc tuned`: list tuned results, carry them between machines, write them for the package, remove them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsemoc.backends import available_backends, get_backend
from sparsemoc.cli import results
from sparsemoc.cli.errors import OutputError
from sparsemoc.cli.place import environment_here
from sparsemoc.cli.summary import counted
from sparsemoc.spec.errors import SpecError
from sparsemoc.tuning import shipped
from sparsemoc.tuning.export import export, read_export
from sparsemoc.tuning.key import Environment
from sparsemoc.tuning.store import Entry, Store


@click.group("tuned", short_help="List, export, merge or remove tuned results.")
def command() -> None:
    """List tuned results, carry them between machines, or remove them."""


@command.command("list")
def list_() -> None:
    """List the results of this machine first, then those of others, and the files that are damaged."""
    console, store = Console(), Store()
    entries, damaged = list(store.entries()), store.damaged()
    here = _here({entry.environment.backend for entry in entries})
    entries.sort(key=lambda entry: (entry.environment not in here, entry.environment, entry.key))
    for environment, held in groupby(entries, key=lambda entry: entry.environment):
        console.print(_table(environment, list(held), environment in here))
    for path, reason in damaged:
        console.print(f"Damaged, not used: {path}: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{counted(len(entries), 'result')} in {store.folder}.", markup=False, highlight=False, soft_wrap=True
    )


def _here(backends: set[str]) -> set[Environment]:
    """Return the environments in which backends run here."""
    absent = available_backends()
    found = (environment_here(get_backend(name)) for name in backends if absent.get(name, "unknown") is None)
    return {environment for environment in found if environment is not None}


def _table(environment: Environment, entries: list[Entry], here: bool) -> Table:
    used = "used here" if here else "not used here: another device, version, or state of the kernels"
    driver = f", driver {environment.driver}" if environment.driver else ""
    title = (
        f"{environment.backend} on {environment.device} ({environment.architecture}{driver}), {environment.versions}: "
        f"{used}"
    )
    table = Table(title=Text(title), title_justify="left")
    for column in ("operation", "problem", "gain", "config", "age"):
        table.add_column(column, overflow="fold")
    for _, key, outcome in entries:
        cells = (results.described(key), results.gain(outcome), results.changes(outcome), results.age(outcome))
        table.add_row(*map(Text, (results.operation_of(key), *cells)))
    return table


@command.command("export")
@click.argument("file", type=click.Path(path_type=Path))
def export_(file: Path) -> None:
    """Write all results to FILE, for another machine of the kind."""
    with _writing("export", file):
        count = export(Store().entries(), file)
    click.echo(f"{counted(count, 'result')} written to {file}.")


@command.command("merge")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
def merge(files: tuple[Path, ...]) -> None:
    """Take in the results of exported FILEs; of two results of a problem the newer stays."""
    entries = [entry for file in files for entry in read_export(file)]  # all are read before anything is written
    store = Store()
    with _writing("merge", store.folder):
        merged = store.merge(entries)
    click.echo(
        f"{merged.added} added, {merged.replaced} replaced by newer ones, {merged.kept} left as they are, "
        f"in {store.folder}."
    )


@command.command("ship")
@click.argument("folder", type=click.Path(path_type=Path))
def ship(folder: Path) -> None:
    """Write all results into FOLDER, sparsemoc/tuning/data of a checkout, to come with the package."""
    entries = list(Store().entries())
    if not entries:
        raise SpecError(f"tuned ship: there must be results in {Store().folder}. Hint: sparsemoc tune.")
    with _writing("ship", folder):
        written = shipped.ship(entries, folder)
    click.echo("\n".join(str(path) for path in written))


@command.command("clear")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(yes: bool) -> None:
    """Remove all tuned results of this user, the damaged ones too."""
    store = Store()
    if not yes:
        click.confirm(f"Remove all tuned results in {store.folder}?", abort=True)
    with _writing("clear", store.folder):
        count = store.clear()
    click.echo(f"{counted(count, 'result')} removed from {store.folder}.")


@contextmanager
def _writing(action: str, path: Path) -> Iterator[None]:
    """Turn what the system says of a file into one line."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"tuned {action}: {path} must be a place that can be written: {error.strerror or error}."
        ) from None
