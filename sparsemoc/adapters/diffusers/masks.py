"""Text padding: how many tokens of each segment are valid, counted on the device."""

from __future__ import annotations

from typing import Any

import torch

from sparsemoc.spec.errors import ShapeError, UnsupportedError
from sparsemoc.spec.stream import Stream


def key_lengths(layer: str, stream: Stream, mask: Any, *, checked: bool = False) -> Any:
    """Return the valid tokens of each segment, int32 (batch, segments), of a mask that only pads text at its end.

    valid(segment) = clamp(valid text - text before the segment, 0, its tokens); video is all valid. The count is taken
    on the device. That valid tokens come first is the construction of the families that have such a mask.

    Args:
        layer: name for messages.
        stream: the token sequence.
        mask: bool (batch, 1, 1, tokens), or (batch, text tokens); None for no padding.
        checked: read the mask, and raise where it masks anything but the end of the text. Waits for the device.

    Raises:
        UnsupportedError: a mask of another dtype, or one that differs from query to query.
        ShapeError: a mask of other lengths; with `checked`, one that does not pad text at its end.
    """
    if mask is None:
        return None
    text = sum(segment.tokens for segment in stream.segments if segment.kind == "text")
    valid = _text_part(layer, stream, mask, text)
    if checked:
        _check_prefix(layer, stream, mask, valid)
    count, before, lengths = valid.sum(dim=1), 0, []
    for segment in stream.segments:
        if segment.kind == "text":
            lengths.append((count - before).clamp(0, segment.tokens))
            before += segment.tokens
        else:
            lengths.append(torch.full_like(count, segment.tokens))
    return torch.stack(lengths, dim=1).to(torch.int32)


def _text_part(layer: str, stream: Stream, mask: Any, text: int) -> Any:
    """Return the mask of the text, (batch, text tokens)."""
    if not isinstance(mask, torch.Tensor) or mask.dtype is not torch.bool:
        kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise UnsupportedError(
            f"{layer}: the attention mask must be bool, True for valid keys, got {kind}. It would be dropped. "
            "Hint: leave this layer dense, per_layer={...: None}."
        )
    shape = tuple(mask.shape)
    if not text or len(shape) not in (2, 4) or shape[1:-1] not in ((), (1, 1)):
        raise UnsupportedError(
            f"{layer}: the attention mask must be one of keys that pads text, (batch, 1, 1, {stream.tokens}), got "
            f"shape {shape} for {text} text tokens. A mask that differs from query to query cannot be kept. "
            "Hint: leave this layer dense, per_layer={...: None}."
        )
    wanted = text if len(shape) == 2 else stream.tokens
    if shape[-1] != wanted:
        raise ShapeError(f"{layer}: the attention mask must have {wanted} keys, got shape {shape}.")
    if len(shape) == 2:
        return mask
    first = 0 if stream.segments[0].kind == "text" else stream.tokens - text
    return mask[:, 0, 0, first : first + text]


def _check_prefix(layer: str, stream: Stream, mask: Any, valid: Any) -> None:
    """Read the mask: valid text first, and nothing else masked."""
    ordered = bool((valid[:, 1:] <= valid[:, :-1]).all())
    hidden = int((~mask).sum()) - int((~valid).sum())
    if not ordered or hidden:
        raise ShapeError(
            f"{layer}: the attention mask must hide nothing but the end of the text, got one that hides "
            f"{'text before valid text' if not ordered else f'{hidden} video tokens'}. "
            "Hint: put valid text first, or leave this layer dense, per_layer={...: None}."
        )
