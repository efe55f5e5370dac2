"""The clips: real shots, edited so that the first scene comes back at the end, and their latents.

There is no autoencoder: the latent of a frame is its pixels, regrouped. 4 x 4 pixels of 3 colours make one latent pixel
of 48 channels (space to depth) with values in -1 ... 1. The way back is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from sparsemoc.examples.train_dit.settings import Settings
from sparsemoc.video.clips import Clip, sample_folder
from sparsemoc.video.shots import read_frames

Tensor = Any

#: Pixels along each side of a latent pixel, and its channels.
SIDE, CHANNELS = 4, 48
#: Channels that tell the model the scene of a frame, a fixed random code, and the place in the frame, as waves.
CODE = 8
WAVES = (1, 2, 4)
CONDITION = CODE + 4 * len(WAVES)
#: Video frames from one latent frame to the next.
EVERY = 2
#: An edit shows three scenes, and then the first again.
SCENES_IN_EDIT, SHOTS = 3, 4
#: Fixed: with the seed of the run the validation would change.
VALIDATION_SEED = 20250828


#: Stretches without a cut.
SCENES = (
    Clip("rabbit", "bigbuckbunny.mp4", 0, 132),
    Clip("driver", "carphone_pristine.mp4", 0, 120),
    Clip("street", "bikes.mp4", 78, 57),
    Clip("fence", "bikes.mp4", 140, 48),
)


@dataclass(frozen=True, eq=False)
class Clips:
    """A batch of edits.

    Attributes:
        latents: (batch, 48, frames, height, width) float32.
        condition: (batch, 20, frames, height, width) float32, the scene of each frame and the place in it.
        scenes: for each clip the numbers of its scenes, in order.
    """

    latents: Tensor
    condition: Tensor
    scenes: tuple[tuple[int, ...], ...]

    def to(self, device: Any) -> Clips:
        """Return the batch on a device."""
        return Clips(self.latents.to(device), self.condition.to(device), self.scenes)


class Footage:
    """Decoded scenes, and batches of edits from them. The end of every scene is held out for validation."""

    def __init__(self, settings: Settings, progress: Callable[[int], None] = lambda count: None) -> None:
        self._settings = settings
        self._span = 1 + (settings.frames - 1) * EVERY
        self._held_out = self._span + 5
        self._scenes: list[Tensor] = []
        folder = sample_folder()
        for scene in SCENES:
            frames = read_frames(folder / scene.file, scene.start, scene.frames, 1, lambda count: None)
            self._scenes.append(_resized(torch.from_numpy(frames), settings.height, settings.width))
            progress(len(self._scenes))
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        self._codes = torch.randn(len(SCENES), CODE, generator=generator)

    def training(self, generator: Any) -> Clips:
        """Return random edits of the training frames."""
        edits = []
        for _ in range(self._settings.batch):
            order = torch.randperm(len(SCENES), generator=generator)[:SCENES_IN_EDIT].tolist()
            scenes = (*order, order[0])
            lasts = [len(self._scenes[scene]) - self._held_out - self._span for scene in scenes]
            starts = [int(torch.randint(last + 1, (), generator=generator)) for last in lasts]
            edits.append((scenes, starts))
        return self._clips(edits)

    def validation(self) -> Clips:
        """Return one edit that begins with each scene, of held-out frames alone. Always the same."""
        edits = []
        for first in range(len(SCENES)):
            order = [(first + turn) % len(SCENES) for turn in range(SCENES_IN_EDIT)]
            scenes = (*order, first)
            starts = [len(self._scenes[scene]) - self._held_out for scene in scenes]
            starts[-1] += self._held_out - self._span  # the scene has gone on when it comes back
            edits.append((scenes, starts))
        return self._clips(edits)

    def _clips(self, edits: Sequence[tuple[tuple[int, ...], Sequence[int]]]) -> Clips:
        pictures, codes = [], []
        for scenes, starts in edits:
            shots = [
                self._scenes[scene][start : start + self._span : EVERY]
                for scene, start in zip(scenes, starts, strict=True)
            ]
            pictures.append(torch.cat(shots))
            codes.append(self._codes[list(scenes)].repeat_interleave(self._settings.frames, dim=0))
        latents = encode(torch.stack(pictures))
        size = latents.shape[2:]
        scene = torch.stack(codes).transpose(1, 2)[..., None, None].expand(-1, -1, *size)
        place = _places(*size[1:])[None, :, None].expand(len(edits), -1, *size)
        return Clips(latents, torch.cat([scene, place], dim=1), tuple(scenes for scenes, _ in edits))


def _places(height: int, width: int) -> Tensor:
    """Return (12, height, width): sine and cosine waves along either side.

    Rotary embeddings tell the model distances alone, and hundreds of steps do not suffice to learn places from them.
    """
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [
        function(torch.pi * wave * side) for wave in WAVES for side in (y, x) for function in (torch.sin, torch.cos)
    ]
    return torch.stack(waves)


def _resized(frames: Tensor, height: int, width: int) -> Tensor:
    """Cut frames (n, rows, columns, 3) to the aspect of a frame, at their middle, and make them small."""
    rows, columns = frames.shape[1:3]
    tall, wide = min(rows, columns * height // width), min(columns, rows * width // height)
    top, left = (rows - tall) // 2, (columns - wide) // 2
    cut = frames[:, top : top + tall, left : left + wide].permute(0, 3, 1, 2).float()
    return functional.interpolate(cut, (height, width), mode="area").round().byte().permute(0, 2, 3, 1)


def encode(pictures: Tensor) -> Tensor:
    """Return the latents (batch, 48, frames, height / 4, width / 4) of (batch, frames, height, width, 3) uint8."""
    channels_first = pictures.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    return functional.pixel_unshuffle(channels_first, SIDE).transpose(1, 2).contiguous()


def decode(latents: Tensor) -> Tensor:
    """Return the pictures (batch, frames, height, width, 3) uint8 of latents; values beyond -1 ... 1 are clipped."""
    pixels = functional.pixel_shuffle(latents.transpose(1, 2), SIDE)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 1, 3, 4, 2)
