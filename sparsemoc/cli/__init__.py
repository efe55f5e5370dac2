"""The command line: `sparsemoc demo`, `explain`, `doctor`, `tune` and `tuned`."""

from __future__ import annotations

import importlib
from typing import Any

import click

from sparsemoc._version import __version__
from sparsemoc.spec.errors import SparsemocError, describe, did_you_mean, one_of

__all__ = ["main"]

#: Each command and the module that holds it: a command's libraries load when it is called.
_COMMANDS = {name: f"sparsemoc.cli.{name}" for name in ("demo", "doctor", "explain", "tune", "tuned")}


class _UserError(click.ClickException):
    """What the user can put right: one line on stderr, exit code 2."""

    exit_code = 2


class _Commands(click.Group):
    """Loads commands when they are named, and turns the library's errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click knows no name before its module is loaded, so it has nothing to suggest.
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            raise _UserError(
                f"the command must be {one_of(self.list_commands(ctx))}, got {describe(name)}."
                f"{did_you_mean(name, _COMMANDS) or ' Hint: sparsemoc --help.'}"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SparsemocError as error:
            raise _UserError(" ".join(str(error).split())) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sparsemoc")
def main() -> None:
    """Mixture-of-Contexts attention: see it on real video, size it before a run, tune it, check the installation."""
