"""The mean feature of each shot of a stream: what the outer router compares."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsemoc.spec.errors import ShapeError, SpecError
from sparsemoc.spec.stream import Stream
from sparsemoc.training.tensors import torch_of


def shot_features(x: Any, stream: Stream, *, kinds: tuple[str, ...] | None = None, key_lengths: Any = None) -> Any:
    """Return the mean feature of each shot: f_j = (sum of the features of its valid tokens) / their number.

    Args:
        x: (batch, tokens, dim) or (tokens, dim), NumPy or torch: token features, not keys.
        stream: says which tokens belong to which shot; global text belongs to none.
        kinds: kinds of segments that count, such as ("video",); None counts all of a shot, its caption too.
        key_lengths: int (batch, segments) or (segments,), of the library of x: valid tokens of each segment, from its
            start; None for all.

    Returns:
        float32 (batch, shots, dim) or (shots, dim), shots in order of first appearance; 0 where no token is valid.

    Raises:
        ShapeError: a number of tokens that is not the stream's; key_lengths of another shape or library.
        SpecError: a shot without a segment of these kinds.
    """
    _check(x, stream, key_lengths)
    torch = torch_of(x)
    shots = 1 + max((shot for shot in stream.shots if shot is not None), default=-1)
    features = [_mean(x, stream, _segments(stream, shot, kinds), key_lengths) for shot in range(shots)]
    if torch is not None:
        return torch.stack(features, -2) if features else x.new_zeros((*x.shape[:-2], 0, x.shape[-1])).float()
    return np.stack(features, -2) if features else np.zeros((*x.shape[:-2], 0, x.shape[-1]), np.float32)


def _segments(stream: Stream, shot: int, kinds: tuple[str, ...] | None) -> list[int]:
    found = [
        index
        for index, segment in enumerate(stream.segments)
        if stream.shots[index] == shot and (kinds is None or segment.kind in kinds)
    ]
    if not found:
        raise SpecError(
            f"shot_features: each shot must have a segment of kinds {kinds}, got none in shot {shot}. "
            "Hint: kinds=None counts all of them."
        )
    return found


def _mean(x: Any, stream: Stream, segments: list[int], key_lengths: Any) -> Any:
    """Return the mean of the valid tokens of some segments, float32 (..., dim)."""
    totals, count = [], 0
    for index in segments:
        part = x[..., stream.bounds[index] : stream.bounds[index + 1], :]
        length = None if key_lengths is None else key_lengths[..., index].clip(0, part.shape[-2])
        totals.append(_sum(part, length))
        count = count + (part.shape[-2] if length is None else length)
    mean = sum(totals) / (count if isinstance(count, int) else count.clip(1)[..., None])
    return mean if torch_of(x) is not None else mean.astype(np.float32)


def _sum(part: Any, length: Any) -> Any:
    """Return the sum of the first `length` tokens; what is padded may hold anything, NaN too."""
    torch = torch_of(part)
    if torch is None:
        if length is not None:
            valid = np.arange(part.shape[-2]) < length[..., None]
            part = np.where(valid[..., None], part, part.dtype.type(0))
        return part.sum(-2, dtype=np.float64)
    if length is not None:
        valid = torch.arange(part.shape[-2], device=part.device) < length[..., None]
        part = part.masked_fill(~valid[..., None], 0)
    return part.sum(-2, dtype=torch.float32)


def _check(x: Any, stream: Stream, key_lengths: Any) -> None:
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) not in (2, 3) or shape[-2] != stream.tokens:
        raise ShapeError(
            f"shot_features: x must have shape (batch, tokens, dim) or (tokens, dim) with the stream's {stream.tokens} "
            f"tokens, got {shape}."
        )
    if key_lengths is None:
        return
    wanted, got = (*shape[:-2], len(stream.segments)), tuple(getattr(key_lengths, "shape", ()))
    if got != wanted or torch_of(key_lengths) is not torch_of(x):
        raise ShapeError(
            f"shot_features: key_lengths must be of the library of x and have shape {wanted}, one number for each "
            f"segment, got {type(key_lengths).__name__} {got}."
        )
