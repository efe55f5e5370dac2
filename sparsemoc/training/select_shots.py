"""The part of a stream that holds some of its shots, and the places of its tokens in the whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec import checks
from sparsemoc.spec.errors import ShapeError, SpecError, describe
from sparsemoc.spec.host import host
from sparsemoc.spec.stream import Stream
from sparsemoc.training.tensors import torch_of


class Kept(NamedTuple):
    """What is left of a stream.

    Attributes:
        stream: the kept segments, in order, with the shot numbers that they had.
        tokens: int64 (kept tokens,) their positions in the whole stream, ascending.
    """

    stream: Stream
    tokens: NDArray[np.int64]

    def gather(self, array: Any, axis: int = 1) -> Any:
        """Return the kept tokens of an array, NumPy or torch, that has the whole stream's tokens along an axis.

        Args:
            array: such as q, k or v, (batch, tokens, heads, head_dim), or token features (batch, tokens, dim).
            axis: the axis of tokens.

        Returns:
            The same with `len(tokens)` entries on that axis; differentiable in torch.
        """
        torch = torch_of(array)
        if torch is None:
            return np.take(array, self.tokens, axis=axis)
        return torch.index_select(array, axis, torch.from_numpy(self.tokens).to(array.device))


def select_shots(stream: Stream, shots: Any) -> Kept:
    """Return the part of a stream that holds the given shots and all global text.

    Attention over this part is attention over the whole stream with the other shots masked: chunks never cross a
    segment, so they stay what they were. Only anchors that count positions (`first`, `window`) count them anew. To
    assign positions anew too, as the paper does, gather the features before the position embedding is applied.

    Args:
        stream: the whole stream.
        shots: numbers of the shots to keep, in any order: their places in order of first appearance, as in
            `Stream.shots`. A sequence or a 1-d array, NumPy or torch; one on a GPU is waited for.

    Returns:
        The smaller stream, and its tokens' positions in the whole.

    Raises:
        ShapeError: shots of another rank, or that are no whole numbers.
        SpecError: a number that is no shot of the stream; nothing left.
    """
    if not isinstance(stream, Stream):
        raise SpecError(f"select_shots: stream must be a Stream, got {describe(stream)}. Hint: Stream.multishot(...).")
    count = 1 + max((shot for shot in stream.shots if shot is not None), default=-1)
    wanted = {checks.whole(n, "select_shots: shots", least=0, most=count - 1) for n in _numbers(shots)}
    kept = [index for index, shot in enumerate(stream.shots) if shot is None or shot in wanted]
    if not kept:
        raise SpecError(
            "select_shots: shots must leave something of a stream without global text, got none. "
            "Hint: keep the shot that is to be generated."
        )
    tokens = [np.arange(stream.bounds[index], stream.bounds[index + 1]) for index in kept]
    return Kept(Stream(tuple(stream.segments[index] for index in kept)), np.concatenate(tokens))


def _numbers(shots: Any) -> list[int]:
    array = np.asarray(host(shots)) if hasattr(shots, "shape") else np.array(list(shots))
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ShapeError(
            f"select_shots: shots must be whole numbers in one row, got {array.dtype} of shape {array.shape}. "
            "Hint: one row of a batch at a time; each has a stream of its own."
        )
    numbers: list[int] = array.tolist()
    return numbers
