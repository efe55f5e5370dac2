"""What a run came to: pictures, summary.json, and a table with honest words."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sparsemoc.examples.train_dit import pictures
from sparsemoc.examples.train_dit.footage import decode
from sparsemoc.examples.train_dit.trainer import Trainer

HONEST = (
    "A demonstration that gradients, schedule, route dropout and monitor work together on real video. A few hundred "
    "steps of a tiny model on four scenes say nothing of quality, and the time per step is that of this length on this "
    "machine alone."
)


def write(trainers: Sequence[Trainer], folder: Path, console: Console) -> dict[str, Any]:
    """Write loss.png, samples.png, routing.png and summary.json, and print the summary."""
    runs = {trainer.mode: trainer.records for trainer in trainers}
    summary = {
        "note": HONEST,
        "device": _device_name(trainers[0].device),
        "torch": torch.__version__,
        "settings": asdict(trainers[0].settings),
        "tokens": _tokens(trainers[0]),
        "models": {trainer.mode: _measured(trainer) for trainer in trainers},
    }
    pictures.draw_losses(runs, _setup(trainers[0]), folder / "loss.png")
    _draw_samples(trainers, folder / "samples.png")
    for trainer in trainers:
        if trainer.mode == "moc":
            monitor = trainer.routing()
            monitor.save_picture(folder / "routing.png")
            summary["routing"] = monitor.summary().to_dict()
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _print(summary, folder, console)
    return summary


def _measured(trainer: Trainer) -> dict[str, Any]:
    """Return the numbers of one model; seconds are medians, since the first steps compile."""
    records = trainer.records
    found: dict[str, Any] = {
        "first_held_out_loss": records[0]["validation"],
        "last_held_out_loss": records[-1]["validation"],
        "last_training_loss": float(pictures.smoothed([record["loss"] for record in records])[-1]),
        "seconds_per_step": float(np.median([record["seconds"] for record in records])),
        "kept_pairs": 1.0,
    }
    if trainer.mode == "moc":
        found["kept_pairs"] = pictures.kept_pairs(records[-1])
        found["stages"] = [
            {
                "chunk_size": size,
                "first_step": first,
                "seconds_per_step": float(np.median([record["seconds"] for record in records[first:stop]])),
                "kept_pairs": float(
                    np.mean([pictures.kept_pairs(record) for record in records[first:stop] if "monitor" in record])
                ),
            }
            for first, stop, size in pictures.stages(records)
        ]
    return found


def _draw_samples(trainers: Sequence[Trainer], path: Path) -> None:
    """Draw the first held-out clip, and what each model made from noise for its scenes."""
    held_out = trainers[0].held_out
    rows = [("real,\nheld out", decode(held_out.latents[:1])[0].cpu().numpy())]
    for trainer in trainers:
        name = pictures.NAMES[trainer.mode].replace(" of ", "\nof ")
        rows.append((name, decode(trainer.sample()[:1])[0].cpu().numpy()))
    settings = trainers[0].settings
    note = (
        f"First and last frame of each shot. Told to the models: each shot's scene. Same noise, "
        f"{settings.sample_steps} Euler steps. After {settings.steps} training steps; no claim of quality."
    )
    pictures.draw_samples(rows, held_out.scenes[0], note, path)


def _setup(trainer: Trainer) -> str:
    settings = trainer.settings
    return (
        f"WanTransformer3DModel of {settings.layers} layers, {_tokens(trainer)} tokens, 4 shots of real video; "
        "same weights, batches and noises. No claim of quality."
    )


def _tokens(trainer: Trainer) -> int:
    frames, height, width = trainer.held_out.latents.shape[2:]
    return int(frames * (height // 2) * (width // 2))


def _device_name(device: Any) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"


def _print(summary: dict[str, Any], folder: Path, console: Console) -> None:
    table = Table(title=f"After {summary['settings']['steps']} steps, {summary['tokens']} tokens", title_justify="left")
    for column in ("", "held-out loss", "training loss", "pairs kept", "time per step"):
        table.add_column(column, justify="left" if not column else "right")
    for mode, found in summary["models"].items():
        table.add_row(
            pictures.NAMES[mode],
            f"{found['first_held_out_loss']:.3f} → {found['last_held_out_loss']:.3f}",
            f"{found['last_training_loss']:.3f}",
            f"{100 * found['kept_pairs']:.0f} %",
            f"{found['seconds_per_step']:.3f} s",
        )
    console.print(table)
    console.print(f"Measured on: {summary['device']}. {summary['note']}", highlight=False)
    console.print(f"Pictures, logs and summary.json: {folder}", highlight=False, soft_wrap=True)
