"""Streams for a compiler: it cannot run what builds them, and takes the outcome as a constant of the graph.

Only of a text does it make a plain constant. So the stream is kept as an attribute, and its name is the constant.
"""

from __future__ import annotations

import torch

from sparsemoc.adapters.diffusers.streams import Shots, build_stream
from sparsemoc.spec.stream import Stream


class _Kept:
    """Streams by name, one for each stream that a graph was made of."""


_KEPT = _Kept()


@torch.compiler.assume_constant_result
def _keep(order: tuple[str, ...], grid: tuple[int, int, int], text: int, shots: Shots) -> str:
    """Build a stream, and return the name that it is kept by."""
    stream = build_stream(order, grid, text, shots)
    for name, kept in vars(_KEPT).items():
        if kept == stream:
            return name
    name = f"stream_{len(vars(_KEPT))}"
    setattr(_KEPT, name, stream)
    return name


def stream_of(order: tuple[str, ...], grid: tuple[int, int, int], text: int, shots: Shots) -> Stream:
    """Return what `build_stream` does, compiled or not; the compiler guards the numbers that make it."""
    if not torch.compiler.is_compiling():
        return build_stream(order, grid, text, shots)
    found: Stream = getattr(_KEPT, _keep(order, grid, text, shots))
    return found
