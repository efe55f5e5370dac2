"""Gradient checkpointing: a block is computed again with the stream of its own pass, not with that of a later one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sparsemoc.adapters.diffusers.layer import State


class _Recall:
    """Stands for a model's checkpoint function."""

    def __init__(self, checkpoint: Callable[..., Any], state: State) -> None:
        self.checkpoint = checkpoint
        self.state = state

    def __call__(self, block: Any, *args: Any) -> Any:
        if torch.compiler.is_compiling():  # the stream is a constant of the graph, recomputed or not
            return self.checkpoint(block, *args)
        return self.checkpoint(_Block(block, self.state), *args)


class _Block:
    """A block as it was called: checkpoint functions call it, or its `__call__`, once more in the backward pass."""

    def __init__(self, block: Any, state: State) -> None:
        self.block = block
        self.state = state
        self.then = state.stream, state.training, state.dense, state.monitor

    def __call__(self, *args: Any) -> Any:
        with _as_of(self.state, self.then):
            self.then = *self.then[:3], None  # once is enough for the monitor
            return self.block(*args)


@contextmanager
def _as_of(state: State, then: tuple[Any, ...]) -> Iterator[None]:
    now = state.stream, state.training, state.dense, state.monitor
    state.stream, state.training, state.dense, state.monitor = then
    try:
        yield
    finally:
        state.stream, state.training, state.dense, state.monitor = now


def recall(model: Any, state: State) -> None:
    """Make the model's checkpoints recall their pass; once is enough."""
    if not isinstance(model._gradient_checkpointing_func, _Recall):
        model._gradient_checkpointing_func = _Recall(model._gradient_checkpointing_func, state)


def forget(model: Any) -> None:
    """Give the model its own checkpoint function back."""
    checkpoint = getattr(model, "_gradient_checkpointing_func", None)
    if isinstance(checkpoint, _Recall):
        model._gradient_checkpointing_func = checkpoint.checkpoint
