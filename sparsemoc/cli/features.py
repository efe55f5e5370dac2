"""Deterministic content features of 3-D patches, as q, k and v.

Nothing here is trained. A patch is described by what it looks like, q and k are almost the same projection of that
description, and so patches attract patches that look alike: the property of trained q and k that routing lives on. What
the demo measures is therefore real video and real routing, but not the attention of a trained model.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.video.shots import PATCH, STEP, Shot

Array = NDArray[np.float32]

#: Text tokens of a shot's caption, which is its label.
CAPTION = 8
#: Weight in the logits of the likeness of two patches (a cosine), and of their nearness in the 3-D grid.
CONTENT, NEARNESS = 12.0, 2.0
#: Weight of the features of the whole frame: scenes differ, as they do for a model that has seen the prompt.
SCENE = 2.0
OWN_FEATURES, SCENE_FEATURES = 30, 6
#: Share of noise that keeps q from being k itself: in a trained model the two projections differ too.
DIFFERENCE = 0.15
SEED = 20250828


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one stream.

    Attributes:
        q, k, v: each (1, tokens, heads, head_dim) float32.
        salience: (tokens,) how unlike the average patch; 0 for text.
    """

    stream: Stream
    q: Array
    k: Array
    v: Array
    salience: Array


def stream_of(shots: Sequence[Shot]) -> Stream:
    """Return the stream: for each shot its caption and its video; the shot's number is its place."""
    segments: list[Segment] = []
    for number, shot in enumerate(shots):
        segments.append(Segment("text", CAPTION, shot=number))
        segments.append(Segment("video", shot=number, grid=shot.grid))
    return Stream(tuple(segments))


def make_tokens(shots: Sequence[Shot], heads: int, head_dim: int) -> Tokens:
    """Return q, k and v of the shots: likeness, a rotary-like 3-D position part, and content as v.

    q . k * head_dim ** -0.5 = CONTENT * cos(content of i, content of j) + NEARNESS * nearness(position of i, of j),
    where nearness is a mean of cosines of coordinate differences: as with rotary embeddings, it depends on differences
    alone.
    """
    described = [describe(shot) for shot in shots]
    content = _standardised(np.concatenate(described))
    content[:, -SCENE_FEATURES:] *= SCENE
    # Contrast in colour counts most: it is what people see first, and where objects meet.
    weights = np.repeat([1.0, 2.0, 1.0], [3, 3, OWN_FEATURES - 6])
    salience = np.linalg.norm(content[:, :OWN_FEATURES] * weights, axis=1)
    stream = stream_of(shots)
    q = np.zeros((1, stream.tokens, heads, head_dim), np.float32)
    k, v = np.zeros_like(q), np.zeros_like(q)
    distinct = np.zeros(stream.tokens, np.float32)
    is_video = np.repeat([s.kind == "video" for s in stream.segments], [s.tokens for s in stream.segments])
    distinct[is_video] = salience
    position = _rotary(_coordinates(shots), max(1, head_dim // 16))
    captions = np.concatenate([_caption(shot.label) for shot in shots])
    nearness = position.shape[1]
    for head in range(heads):
        random = np.random.Generator(np.random.Philox(key=SEED, counter=head))
        width = head_dim - nearness
        project = _orthogonal(random, content.shape[1], width)
        other = _orthogonal(random, content.shape[1], width)
        for array, matrix in ((q, project + np.float32(DIFFERENCE) * other), (k, project)):
            array[0, is_video, head, :width] = _unit(content @ matrix) * CONTENT**0.5
            array[0, is_video, head, width:] = position * NEARNESS**0.5
            array[0, ~is_video, head, :width] = _unit(captions @ matrix[: captions.shape[1]]) * CONTENT**0.5
        values = _orthogonal(random, content.shape[1], head_dim)
        v[0, is_video, head] = content @ values
        v[0, ~is_video, head] = captions @ values[: captions.shape[1]]
    # scale is head_dim ** -0.5 in the call; the fourth root on either side takes it out of the weights above.
    q *= head_dim**0.25
    k *= head_dim**0.25
    return Tokens(stream, q, k, v, distinct)


def describe(shot: Shot) -> Array:
    """Return (tokens, features) of a shot: colour, contrast, texture, edges, motion; of the patch and around it.

    The features of a patch come first, then their mean over the neighbours, then the colours of the whole frame.
    """
    frames, height, width = shot.grid
    own = []
    for latent in range(frames):
        pixels = _opponent(shot.frames[latent * STEP : (latent + 1) * STEP])
        own.append(_describe_frame(pixels, height, width))
    grid = np.stack(own)
    around = _box_mean(grid)
    colours = grid[..., :SCENE_FEATURES].mean(axis=(1, 2), keepdims=True)
    scene = np.broadcast_to(colours, (*grid.shape[:3], SCENE_FEATURES))
    joined = np.concatenate([grid, around, scene], axis=-1)
    return joined.reshape(frames * height * width, -1).astype(np.float32)


def _describe_frame(pixels: Array, height: int, width: int) -> Array:
    """Return (height, width, features) of STEP frames of opponent colours (STEP, rows, columns, 3)."""
    mean = pixels.mean(axis=0)
    patches = mean.reshape(height, PATCH, width, PATCH, 3).transpose(0, 2, 1, 3, 4)
    colour = patches.mean(axis=(2, 3))
    contrast = patches.std(axis=(2, 3))
    basis = _cosines(4)
    texture = np.einsum("ip,hwpq,jq->hwij", basis, patches[..., 0], basis).reshape(height, width, 16)[..., 1:]
    edges = _edges(mean[..., 0], height, width)
    moved = np.abs(pixels[-1, ..., 0] - pixels[0, ..., 0])
    motion = moved.reshape(height, PATCH, width, PATCH).mean(axis=(1, 3))[..., None]
    return np.concatenate([colour, contrast, texture, edges, motion], axis=-1)


def _opponent(frames: NDArray[np.uint8]) -> Array:
    """Return luminance, blue-yellow, red-green of RGB frames, each about -0.5 ... 1."""
    rgb = frames.astype(np.float32) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.stack([luma, rgb[..., 2] - luma, rgb[..., 0] - luma], axis=-1)


def _cosines(count: int) -> Array:
    """Return the first `count` rows of the DCT-II over a patch side, scaled to a mean over the patch."""
    place = (np.arange(PATCH) + 0.5) * np.pi / PATCH
    return (np.cos(np.arange(count)[:, None] * place) * (2**0.5 / PATCH)).astype(np.float32)


def _edges(luma: Array, height: int, width: int) -> Array:
    """Return (height, width, 8): the strength of luminance edges in 8 directions, as their square root."""
    down, across = np.gradient(luma)
    strength = np.hypot(down, across)
    direction = np.floor((np.arctan2(down, across) % np.pi) * (8 / np.pi)).astype(np.int64) % 8
    bins = [
        np.where(direction == b, strength, 0).reshape(height, PATCH, width, PATCH).mean(axis=(1, 3)) for b in range(8)
    ]
    return np.asarray(np.sqrt(np.stack(bins, axis=-1)), np.float32)


def _box_mean(grid: Array) -> Array:
    """Return the mean over the 3 x 3 patches around each patch, the border repeated."""
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = grid.shape[1:3]
    parts = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.asarray(np.mean(parts, axis=0), np.float32)


def _standardised(content: Array) -> Array:
    """Return features with mean 0 and deviation 1 over the stream; far outliers are held at 3 deviations."""
    deviation = content.std(axis=0)
    centred = (content - content.mean(axis=0)) / np.where(deviation > 1e-6, deviation, 1)
    return np.asarray(np.clip(centred, -3, 3), np.float32)


def _coordinates(shots: Sequence[Shot]) -> Array:
    """Return (video tokens, 3): frame number counted through all shots, row and column as parts of the frame."""
    parts, before = [], 0
    for shot in shots:
        frames, height, width = shot.grid
        t, y, x = np.meshgrid(np.arange(frames) + before, np.arange(height), np.arange(width), indexing="ij")
        parts.append(np.stack([t.ravel(), 12 * y.ravel() / height, 12 * x.ravel() / width], axis=1))
        before += frames
    return np.concatenate(parts).astype(np.float32)


def _rotary(coordinates: Array, pairs: int) -> Array:
    """Return (tokens, 6 * pairs), length 1: cosine and sine of each coordinate at `pairs` frequencies."""
    frequencies = (0.3 * 0.4 ** np.arange(pairs)).astype(np.float32)
    angles = (coordinates[:, :, None] * frequencies).reshape(len(coordinates), -1)
    return (np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.float32((3 * pairs) ** 0.5)).astype(
        np.float32
    )


def _caption(label: str) -> Array:
    """Return (CAPTION, 32): one fixed random direction for each three letters of the label, repeated to CAPTION."""
    padded = f" {label} ".lower()
    parts = [padded[i : i + 3] for i in range(max(1, len(padded) - 2))]
    rows = []
    for index in range(CAPTION):
        key = zlib.crc32(parts[index % len(parts)].encode())
        rows.append(np.random.Generator(np.random.Philox(key=key)).standard_normal(32))
    return np.asarray(rows, np.float32)


def _orthogonal(random: np.random.Generator, rows: int, columns: int) -> Array:
    """Return a (rows, columns) matrix with orthonormal columns, or rows where those are fewer."""
    tall = random.standard_normal((max(rows, columns), min(rows, columns)))
    matrix, triangle = np.linalg.qr(tall)
    matrix = matrix * np.sign(np.diag(triangle))
    return np.asarray(matrix if rows >= columns else matrix.T, np.float32)


def _unit(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-6), np.float32)
