"""Checkpoints: one file for each model, written whole or not at all, and read without running code from it."""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparsemoc.examples.train_dit.errors import CheckpointError
from sparsemoc.examples.train_dit.settings import Settings

_KEYS = {"mode", "step", "records", "model", "optimizer", "rng", "cuda_rng", "settings"}


def path_of(folder: Path, mode: str) -> Path:
    """Return the file of a model's checkpoint."""
    return folder / f"{mode}.pt"


def save(path: Path, state: dict[str, Any], settings: Settings) -> None:
    """Write a state under another name, then rename it: the file that was there stays until the new one is whole."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({**state, "settings": asdict(settings)}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path, mode: str, settings: Settings) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged, holds something else, or is of a run with other settings.
    """
    again = "Hint: start again in another --out, or delete the file."
    try:
        if not zipfile.is_zipfile(path):  # torch would try the format of old: any bytes might mean anything
            raise zipfile.BadZipFile("not a whole zip archive")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(
            f"train_dit: checkpoint {path} must be whole, but reading failed: {reason}. {again}"
        ) from None
    if not isinstance(state, dict) or not state.keys() >= _KEYS or state["mode"] != mode:
        raise CheckpointError(
            f"train_dit: {path} must be a checkpoint of the {mode} model, got something else. {again}"
        )
    ours = asdict(settings)
    other = [f"{name}={state['settings'].get(name)}" for name in ours if state["settings"].get(name) != ours[name]]
    if other:
        raise CheckpointError(
            f"train_dit: --resume must continue a run of the same settings, got a checkpoint {path} of "
            f"{', '.join(other)}. Hint: give the options of that run, or another --out."
        )
    return state
