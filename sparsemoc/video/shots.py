"""Decode video files with PyAV and cut them into shots: arrays of frames whose sides are whole patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.video.errors import VideoError, require

#: Side of a patch in pixels of the rescaled frame.
PATCH = 20
#: Video frames to a latent frame.
STEP = 4
#: Patches along the shorter side of a frame: with chunks of 64 tokens the common aspect ratios split into whole rows.
SHORT_SIDE = 12
#: Patches along the longer side, at most.
LONG_SIDE = 36
#: Two successive frames whose difference (0 ... 1) exceeds this, and stands out from its neighbours, are a cut.
CUT = 0.25
#: Shots below this many latent frames are joined to the shot before: flashes and fades are no shots.
LEAST_LATENT = 2

Frames = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Shot:
    """A run of frames without a cut.

    Args:
        label: a short name for pictures.
        source: path of the file.
        start: number of its first frame in the file.
        every: frames of the file from one frame of the shot to the next.
        frames: (frames, height, width, 3) uint8 RGB; frames a multiple of STEP, sides multiples of PATCH.
    """

    label: str
    source: str
    start: int
    every: int
    frames: Frames

    @property
    def grid(self) -> tuple[int, int, int]:
        """The latent grid (frames, height, width) in patches."""
        frames, height, width, _ = self.frames.shape
        return (frames // STEP, height // PATCH, width // PATCH)

    def frame_of(self, latent: int) -> tuple[int, Frames]:
        """Return the number in the file, and the picture, of the first video frame of a latent frame."""
        index = latent * STEP
        return self.start + index * self.every, self.frames[index]


def read_shots(path: Path, most_frames: int, every: int, progress: Callable[[int], None]) -> list[Shot]:
    """Decode at most `most_frames` frames of a file, every `every`-th, and split them at cuts.

    Raises:
        VideoError: no such file, not a video, or fewer than STEP frames.
    """
    frames = read_frames(path, 0, most_frames, every, progress)
    bounds = shot_bounds(frames)
    shots = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        whole = (stop - start) // STEP * STEP
        name = path.stem.replace("_", " ")
        label = name if len(bounds) == 2 else f"{name} {number + 1}"
        shots.append(Shot(label, str(path), start * every, every, frames[start : start + whole]))
    return shots


def check_video(path: Path) -> None:
    """Raise VideoError unless there is such a file: what can be told before any work is begun."""
    if not path.is_file():
        raise VideoError(f"read_frames: video file {path} does not exist. Hint: check the path given to --video.")


def read_frames(path: Path, start: int, most_frames: int, every: int, progress: Callable[[int], None]) -> Frames:
    """Decode frames start, start + every, ... of a file, rescaled to whole patches: (frames, height, width, 3)."""
    check_video(path)
    av = require("av", "PyAV", "decode video")
    kept: list[Frames] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"read_frames: {path} has no video stream. Hint: give a video file to --video.")
            for index, frame in enumerate(_decoded(container)):
                if index >= start and (index - start) % every == 0:
                    width, height = _pixels(frame.width, frame.height)
                    if kept and kept[0].shape != (height, width, 3):
                        height, width = kept[0].shape[:2]
                    kept.append(frame.to_ndarray(width=width, height=height, format="rgb24"))
                    progress(len(kept))
                if len(kept) >= most_frames:
                    break
    except (av.error.FFmpegError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"read_frames: {path} cannot be read as video: {reason}. Hint: PyAV must know its format."
        ) from None
    if len(kept) < STEP:
        raise VideoError(
            f"read_frames: {path} must hold at least {STEP} frames (one latent frame), got {len(kept)}. "
            "Hint: a smaller --every."
        )
    return np.stack(kept)


def _decoded(container: Any) -> Iterator[Any]:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    yield from container.decode(stream)


def _pixels(width: int, height: int) -> tuple[int, int]:
    """Return the rescaled (width, height): the shorter side is SHORT_SIDE patches, the aspect is kept to a patch."""
    ratio = max(width, height) / max(1, min(width, height))
    longer = min(LONG_SIDE, max(SHORT_SIDE, round(SHORT_SIDE * ratio)))
    wide = width >= height
    return (longer if wide else SHORT_SIDE) * PATCH, (SHORT_SIDE if wide else longer) * PATCH


def shot_bounds(frames: Frames) -> list[int]:
    """Return 0, the first frame after each cut, and the number of frames."""
    change = _changes(frames)
    least = STEP * LEAST_LATENT
    bounds = [0]
    for index, value in enumerate(change):
        # A pan or a flicker raises the whole neighbourhood; a cut is a single peak.
        near = np.concatenate([change[max(0, index - 4) : index], change[index + 1 : index + 5]])
        stands_out = value > 3 * (np.median(near) if near.size else 0.0)
        if value > CUT and stands_out and index + 1 - bounds[-1] >= least and len(frames) - (index + 1) >= least:
            bounds.append(index + 1)
    return [*bounds, len(frames)]


def _changes(frames: Frames) -> NDArray[np.float64]:
    """Return the difference of each pair of successive frames: half colour histogram, half coarse luminance."""
    coarse = [_coarse(frame) for frame in frames]
    changes = []
    for (histogram, luma), (next_histogram, next_luma) in pairwise(coarse):
        moved = 0.5 * np.abs(next_histogram - histogram).sum()
        # A mean luminance difference of a third of the range is already another picture.
        changed = min(1.0, 3 * float(np.abs(next_luma - luma).mean()))
        changes.append(0.5 * moved + 0.5 * changed)
    return np.asarray(changes, dtype=np.float64)


def _coarse(frame: Frames) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a colour histogram of 4 x 4 x 4 bins that sums to 1, and the mean luminance (0 ... 1) of each patch."""
    pixels = frame[::4, ::4].astype(np.int64)
    bins = pixels // 64
    codes = (bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]).ravel()
    histogram = np.bincount(codes, minlength=64) / codes.size
    height, width = frame.shape[0] // PATCH, frame.shape[1] // PATCH
    luma = frame.mean(axis=-1, dtype=np.float64) / 255
    return histogram, luma.reshape(height, PATCH, width, PATCH).mean(axis=(1, 3))


def latent_frames(shots: Iterable[Shot]) -> int:
    """Return the number of latent frames of all shots."""
    return sum(shot.grid[0] for shot in shots)
