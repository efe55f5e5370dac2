"""Train a small video DiT, dense against Mixture of Contexts, and draw what came of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from sparsemoc.examples.train_dit.settings import Settings
from sparsemoc.spec.errors import SparsemocError
from sparsemoc.video.errors import require

#: Exit code of a process that Ctrl-C ended.
_INTERRUPTED = 130
_NEEDED = {
    "torch": ("torch", "train"),
    "diffusers": ("diffusers", "make the model"),
    "av": ("PyAV", "decode video"),
    "matplotlib": ("matplotlib", "draw the pictures"),
}


class _UserError(click.ClickException):
    """What the user can put right: one line on stderr, exit code 2."""

    exit_code = 2


@click.command("train_dit", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("train-dit"), show_default=True,
    metavar="DIR", help="Folder for pictures, logs, checkpoints and summary.json.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(3), help="Training steps of each model.  [default: 500]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, batches and noises.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="auto: cuda if any."
)
@click.option("--only", type=click.Choice(["dense", "moc", "both"]), default="both", show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the checkpoints in --out.")
@click.option("--quick", is_flag=True, help="Shorter clips and fewer steps: a look, no result.")
def main(folder: Path, steps: int | None, seed: int, device: str, only: str, resume: bool, quick: bool) -> None:
    """Train a small video diffusion transformer of diffusers (Wan) on real multi-shot clips.

    The same weights are trained twice, with dense attention and with Mixture of Contexts, on the same batches and
    noises. A demonstration that gradients, schedule, route dropout and monitor work together; no claim of quality.
    """
    try:
        _run(_settings(steps, seed, quick), folder, device, ("dense", "moc") if only == "both" else (only,), resume)
    except SparsemocError as error:
        raise _UserError(" ".join(str(error).split())) from error


def _settings(steps: int | None, seed: int, quick: bool) -> Settings:
    settings = Settings.quick(seed) if quick else Settings(seed=seed)
    return settings if steps is None else replace(settings, steps=steps)


def _run(settings: Settings, folder: Path, device: str, modes: tuple[str, ...], resume: bool) -> None:
    for module, (package, purpose) in _NEEDED.items():
        require(module, package, purpose, extras="demo,diffusers")
    from sparsemoc.examples.train_dit import report, run  # here, since they need the extras
    from sparsemoc.examples.train_dit.trainer import Trainer

    console = Console()
    place = _device(device)
    run.check_folder(folder, modes, resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _UserError(f"train_dit: --out {folder} must be a folder that can be written: {error.strerror}.") from None
    footage = run.read_footage(settings, console)
    trainers = [Trainer(mode, settings, footage, place) for mode in modes]
    try:
        for trainer in trainers:
            run.train(trainer, folder, console, resume)
    except run.Stopped as stopped:
        console.print(f"{stopped}; the same command with --resume goes on.", highlight=False)
        sys.exit(_INTERRUPTED)
    report.write(trainers, folder, console)


def _device(name: str) -> Any:
    import torch

    from sparsemoc.examples.train_dit.errors import OptionError

    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("train_dit: --device cuda needs a GPU that torch can use, got none. Hint: --device cpu.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


if __name__ == "__main__":
    main()
