"""`sparsemoc tune`: measure the configs of a backend on problems like the user's, and keep the fastest."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sparsemoc import api
from sparsemoc.backends.protocol import OPERATIONS
from sparsemoc.cli.errors import OutputError, check_heads
from sparsemoc.cli.place import Place, place_for
from sparsemoc.cli.tune_summary import Found, print_tuned
from sparsemoc.frameworks.numpy import DTYPES
from sparsemoc.spec.errors import SpecError, one_of
from sparsemoc.spec.plan import plan
from sparsemoc.spec.serial import load_spec
from sparsemoc.tuning.problems import PROBLEMS, NamedProblem, arrays, named
from sparsemoc.tuning.session import Session, tune
from sparsemoc.tuning.store import Store


@click.command("tune", short_help="Measure a backend's configs here, and keep the fastest.")
@click.argument("spec_file", metavar="[SPEC]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--problem", "names", multiple=True, metavar="NAME", help=f"One of {', '.join(PROBLEMS)}; may be repeated."
)
@click.option("--tokens", type=click.IntRange(1), metavar="N", help="Length of the stream, for a SPEC without one.")
@click.option(
    "--heads",
    type=click.IntRange(1),
    metavar="H",
    help="Query heads; the model's by default, 1 for a SPEC. Results serve calls of about as many.",
)
@click.option("--head-dim", type=click.IntRange(1), metavar="D", help="Channels of a head, for a SPEC; 128 by default.")
@click.option("--backend", default="auto", show_default=True, help="Backend to tune; see `sparsemoc doctor`.")
@click.option("--dtype", type=click.Choice(DTYPES), help="By default float32 on the CPU, bfloat16 on a GPU.")
@click.option(
    "--budget", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, metavar="S",
    help="Seconds for measuring, all problems together.",
)  # fmt: skip
@click.option(
    "--max-configs", type=click.IntRange(1), default=16, show_default=True, metavar="N",
    help="Most configs to measure of one operation.",
)  # fmt: skip
@click.option("--gradients/--no-gradients", default=False, show_default=True, help="Tune training steps too.")
@click.option("--again", is_flag=True, help="Measure what has a result already.")
def command(
    spec_file: Path | None,
    names: tuple[str, ...],
    tokens: int | None,
    heads: int | None,
    head_dim: int | None,
    backend: str,
    dtype: str | None,
    budget: float,
    max_configs: int,
    gradients: bool,
    again: bool,
) -> None:
    """Measure the configs of a backend on problems like yours, and keep the fastest for every later call.

    Problems are named ones (--problem), or a routing spec (.toml or .json). A config wins only if its results are right
    and it is faster than the default.
    """
    problems = _problems(names, spec_file, tokens, heads, head_dim)
    place = place_for(backend, "tune")
    reason = Store().unwritable()
    if reason is not None:
        raise OutputError(f"tune: {reason}. Hint: set SPARSEMOC_CACHE_DIR to a folder that can be written.")
    console = Console()
    with (
        _told(console, budget) as told,
        tune(budget_s=budget, max_configs=max_configs, again=again, progress=told) as session,
    ):
        found = [(one, _tuned(session, one, place, dtype or place.dtype, backend, gradients)) for one in problems]
    print_tuned(console, session, found)


def _problems(
    names: tuple[str, ...], spec_file: Path | None, tokens: int | None, heads: int | None, head_dim: int | None
) -> list[NamedProblem]:
    """Return the problems that the options name."""
    problems = [named(name) if heads is None else named(name).with_heads(heads) for name in names]
    if spec_file is not None:
        problems.append(_of_file(spec_file, tokens, heads or 1, head_dim or 128))
    elif tokens is not None or head_dim is not None:
        option = "--tokens" if tokens is not None else "--head-dim"
        raise SpecError(f"tune: {option} goes with a SPEC file, and none is given. Hint: named problems have sizes.")
    if not problems:
        raise SpecError(
            f"tune: a problem must be given: a SPEC file, or --problem {one_of(PROBLEMS)}. "
            "Hint: sparsemoc tune --problem wan-1.3b/480p --heads 2."
        )
    return problems


def _of_file(file: Path, tokens: int | None, heads: int, head_dim: int) -> NamedProblem:
    """Return the problem of a spec file."""
    spec = load_spec(file)
    if spec.stream is None and tokens is None:
        raise SpecError("tune: --tokens must be given, for the spec has no stream. Hint: --tokens 16384.")
    check_heads("tune", spec, heads)
    (stream,) = plan(spec, tokens=tokens).streams
    return NamedProblem(
        name=str(file),
        about="a routing spec",
        spec=dataclasses.replace(spec, stream=stream),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
    )


@contextmanager
def _told(console: Console, budget: float) -> Iterator[Callable[[str], None]]:
    """Show the lines of a search and, in a terminal, a bar of the time that is left."""
    bars = Progress(
        TextColumn("tuning"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[left]:.0f} s left"),
        console=console,
        disable=not console.is_terminal,
        auto_refresh=False,  # a thread that draws would take time from what is measured
        transient=True,
    )
    start = time.perf_counter()
    task = bars.add_task("tuning", total=budget, left=budget)

    def tell(line: str) -> None:
        spent = min(budget, time.perf_counter() - start)
        bars.update(task, completed=spent, left=budget - spent)
        console.print(line, markup=False, highlight=False, soft_wrap=True)  # above the bar, which it draws anew

    with bars:
        yield tell


def _tuned(
    session: Session, problem: NamedProblem, place: Place, dtype: str, backend: str, gradients: bool
) -> list[Found]:
    """Run a problem inside a session, and return the environments and keys that it met first."""
    sizes = f"{problem.queries:,} x {problem.tokens:,} tokens, {problem.heads} x {problem.head_dim} channels, {dtype}"
    session.progress.tell(f"{problem.name}: {sizes} ({place.framework} on {place.device})")
    before = _places(session)
    made = arrays(problem, dtype)
    q, k, v = (place.put(array) for array in (made.q, made.k, made.v))
    api.attention(q, k, v, problem.spec, backend=backend)
    if gradients:
        api.attention_grads(q, k, v, problem.spec, place.put(made.d_out), backend=backend)
    met = [found for found in _places(session) if found not in before]
    return sorted(met, key=lambda found: (found[1].gradients, OPERATIONS.index(found[1].operation)))


def _places(session: Session) -> set[Found]:
    return {*session.outcomes, *session.reused, *session.skipped}
