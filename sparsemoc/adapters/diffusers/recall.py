"""Gradient checkpointing: a block is computed again with the stream and specs of its own pass, not of a later one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sparsemoc.adapters.diffusers.layer import Layer, State


class _Recall:
    """Stands for a model's checkpoint function."""

    def __init__(self, checkpoint: Callable[..., Any], state: State, layers: Sequence[Layer]) -> None:
        self.checkpoint = checkpoint
        self.state = state
        self.layers = layers

    def __call__(self, block: Any, *args: Any) -> Any:
        if torch.compiler.is_compiling():  # the stream is a constant of the graph, recomputed or not
            return self.checkpoint(block, *args)
        return self.checkpoint(_Block(block, self.state, self.layers), *args)


class _Block:
    """A block as it was called: checkpoint functions call it, or its `__call__`, once more in the backward pass."""

    def __init__(self, block: Any, state: State, layers: Sequence[Layer]) -> None:
        self.block = block
        self.state = state
        self.layers = layers
        self.then = _pass(state, layers)

    def __call__(self, *args: Any) -> Any:
        with _as_of(self.state, self.layers, self.then):
            self.then["monitor"] = None  # once is enough for the monitor
            return self.block(*args)


def _pass(state: State, layers: Sequence[Layer]) -> dict[str, Any]:
    """Return what a pass is computed with."""
    names = ("stream", "training", "dense", "monitor")
    return {name: getattr(state, name) for name in names} | {"specs": [layer.spec for layer in layers]}


def _restore(state: State, layers: Sequence[Layer], then: dict[str, Any]) -> None:
    for layer, spec in zip(layers, then["specs"], strict=True):
        layer.spec = spec
    state.stream, state.training, state.dense = then["stream"], then["training"], then["dense"]
    state.monitor = then["monitor"]


@contextmanager
def _as_of(state: State, layers: Sequence[Layer], then: dict[str, Any]) -> Iterator[None]:
    now = _pass(state, layers)
    _restore(state, layers, then)
    try:
        yield
    finally:
        _restore(state, layers, now)


def recall(model: Any, state: State, layers: Sequence[Layer]) -> None:
    """Make the model's checkpoints recall their pass; once is enough."""
    if not isinstance(model._gradient_checkpointing_func, _Recall):
        model._gradient_checkpointing_func = _Recall(model._gradient_checkpointing_func, state, layers)


def forget(model: Any) -> None:
    """Give the model its own checkpoint function back."""
    checkpoint = getattr(model, "_gradient_checkpointing_func", None)
    if isinstance(checkpoint, _Recall):
        model._gradient_checkpointing_func = checkpoint.checkpoint
