"""The stream of a forward pass: the segments that the model's latent grid, its text and the user's shots make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from sparsemoc.spec import checks
from sparsemoc.spec.errors import ShapeError, SpecError, describe
from sparsemoc.spec.stream import Segment, Stream


@dataclass(frozen=True)
class Shots:
    """Where the user says that shots begin, and how the text is divided among them.

    Args:
        starts: first latent frame of each shot, after patching in time, or None for one video segment without a shot.
        captions: text tokens of the global prompt, then of the caption of each shot, in their order in the sequence;
            text beyond is global. None: all text is global.

    Raises:
        SpecError: starts that do not begin with 0 or do not ascend, captions that are not one more than the shots.
    """

    starts: Sequence[int] | None = None
    captions: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", _checked_starts(self.starts))
        object.__setattr__(self, "captions", _checked_captions(self.captions, self.starts))


def _checked_starts(starts: object) -> tuple[int, ...] | None:
    if starts is None:
        return None
    rule = "enable: shots must be the first latent frame of each shot, ascending from 0"
    hint = "Hint: shots=(0, 5, 12); latent frames count patches in time."
    if not checks.is_items(starts) or not starts:
        raise SpecError(f"{rule}, got {describe(starts)}. {hint}")
    found = tuple(checks.whole(start, "enable: shots", least=0, hint=hint) for start in starts)
    if found[0] != 0 or any(left >= right for left, right in pairwise(found)):
        raise SpecError(f"{rule}, got {describe(starts)}. {hint}")
    return found


def _checked_captions(captions: object, starts: Sequence[int] | None) -> tuple[int, ...] | None:
    if captions is None:
        return None
    rule = "enable: captions must be the text tokens of the prompt and of the caption of each shot"
    if starts is None or not checks.is_items(captions) or len(captions) != 1 + len(starts):
        wanted = "none without shots" if starts is None else f"{1 + len(starts)} numbers"
        raise SpecError(f"{rule}, {wanted}, got {describe(captions)}. Hint: shots=(0, 5), captions=(30, 20, 20).")
    return tuple(checks.whole(count, "enable: captions", least=0) for count in captions)


@lru_cache(maxsize=256)
def build_stream(order: tuple[str, ...], grid: tuple[int, int, int], text: int, shots: Shots) -> Stream:
    """Return the stream of a model's token sequence. The same arguments give the same Stream.

    Args:
        order: as in `Family`.
        grid: (frames, height, width) in latent patches.
        text: text tokens, padding included.
        shots: where shots begin.

    Raises:
        ShapeError: a shot begins beyond the last frame, the captions are longer than the text, an empty grid.
    """
    parts = {"video": _video(grid, shots), "text": _text(text, shots)}
    return Stream(tuple(segment for kind in order for segment in parts[kind]))


def _video(grid: tuple[int, int, int], shots: Shots) -> list[Segment]:
    frames, height, width = grid
    if min(grid) < 1:
        raise ShapeError(f"enable: the latent grid must hold at least one patch, got (frames, height, width) = {grid}.")
    if shots.starts is None:
        return [Segment("video", grid=grid)]
    if shots.starts[-1] >= frames:
        raise ShapeError(
            f"enable: shots must begin before the end of the latent grid, {frames} frames, got {shots.starts}. "
            "Hint: latent frames, after patching in time, not frames of the clip; handle.shots = (0, 5)."
        )
    ends = (*shots.starts[1:], frames)
    lengths = [end - start for start, end in zip(shots.starts, ends, strict=True)]
    return [Segment("video", grid=(length, height, width), shot=shot) for shot, length in enumerate(lengths)]


def _text(text: int, shots: Shots) -> list[Segment]:
    captions = tuple(shots.captions or ())
    rest = text - sum(captions)
    if rest < 0:
        raise ShapeError(
            f"enable: captions must hold at most the {text} text tokens of the model, got {captions}, {sum(captions)} "
            "in all. Hint: count the tokens of the text encoder, padding apart."
        )
    owners = (None, *range(len(captions)))  # the prompt, then each shot
    counts = [(count, shot) for count, shot in zip(captions, owners, strict=False)] + [(rest, None)]
    return [Segment("text", count, shot=shot) for count, shot in counts if count]
