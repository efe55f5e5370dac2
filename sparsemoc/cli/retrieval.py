"""Choose query patches worth showing, and find what they retrieved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsemoc.cli.features import Tokens
from sparsemoc.cli.pictures import Bools, Query, Retrieved
from sparsemoc.cli.recall import Floats, Ints, sparse_weights
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.sample_plan import SamplePlan
from sparsemoc.spec.stream import Segment
from sparsemoc.video.shots import Shot

#: Query patches that are tried in each shot.
_TRIED = 20


def video_starts(tokens: Tokens) -> list[int]:
    """Return the first stream position of each shot's video."""
    stream = tokens.stream
    return [start for start, segment in zip(stream.bounds, stream.segments, strict=False) if segment.kind == "video"]


def reachable_shots(tokens: Tokens, plan: SamplePlan) -> Bools:
    """Return (shots, shots): whether the first or the last patch of shot a may route to shot b."""
    starts = video_starts(tokens)
    ends = [start + segment.tokens for start, segment in zip(starts, _videos(tokens), strict=True)]
    found = np.zeros((len(starts), len(starts)), bool)
    for shot, (start, end) in enumerate(zip(starts, ends, strict=True)):
        for position in (start, end - 1):
            first = plan.chunk_bounds[plan.candidates(position)]
            found[shot] |= [bool(((first >= lo) & (first < hi)).any()) for lo, hi in zip(starts, ends, strict=True)]
    return found


def choose_queries(tokens: Tokens, layout: Layout, shots: Sequence[Shot], count: int) -> list[Query]:
    """Return up to `count` queries of different shots and scenes: striking patches whose routes carry attention."""
    best = [found for shot in range(len(shots)) if (found := _best_of(tokens, layout, shots, shot)) is not None]
    best.sort(key=lambda query: -query.shown_share)
    chosen: list[Query] = []
    for fresh_file in (True, False):
        for query in best:
            seen = {shots[other.shot].source for other in chosen}
            fresh = shots[query.shot].source not in seen
            if len(chosen) < count and query not in chosen and (fresh or not fresh_file):
                chosen.append(query)
    return chosen


def _best_of(tokens: Tokens, layout: Layout, shots: Sequence[Shot], shot: int) -> Query | None:
    """Return the query of a shot whose shown chunks have much attention, among its most striking patches."""
    plan = layout.plan.samples[0]
    start = video_starts(tokens)[shot]
    frames, height, width = shots[shot].grid
    middle = start + frames // 2 * height * width
    y, x = np.divmod(np.arange(height * width), width)
    # Subjects stand near the middle; at the rim black bars and half-seen things stand out.
    away = ((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2
    salience = tokens.salience[middle : middle + height * width] * np.exp(-3 * away)
    found: list[tuple[float, Query]] = []
    for place in np.argsort(-salience, kind="stable")[:_TRIED].tolist():
        position = middle + place
        for head in range(layout.heads):
            query = _query(tokens, plan, layout, shots, position, head)
            if query.retrieved:
                found.append((query.shown_share * float(salience[place]), query))
    return max(found, key=lambda item: item[0], default=(0.0, None))[1]


def _query(tokens: Tokens, plan: SamplePlan, layout: Layout, shots: Sequence[Shot], position: int, head: int) -> Query:
    weights = sparse_weights(tokens, plan, layout, position, head)
    chunks = _video_chunks(tokens, plan, layout.selected[0, head, position - plan.q_start])
    anchors = float(weights[plan.anchors(position)].sum())
    items = [_retrieved(tokens, plan, shots, position, head, chunk, weights) for chunk in chunks]
    items.sort(key=lambda item: -item.score)
    shot, latent, row, column = _place(tokens, shots, position)
    return Query(shot, latent, row, column, head, tuple(items), anchors, 1.0 - anchors)


def _retrieved(
    tokens: Tokens, plan: SamplePlan, shots: Sequence[Shot], position: int, head: int, chunk: int, weights: Floats
) -> Retrieved:
    keys = np.arange(plan.chunk_bounds[chunk], plan.chunk_stop[chunk])
    shot, latents, rows, columns = _places(tokens, shots, keys)
    held = np.bincount(latents, weights=weights[keys] + 1e-12)
    latent = int(held.argmax())
    inside = latents == latent
    _, height, width = shots[shot].grid
    area, attention = np.zeros((height, width), bool), np.zeros((height, width))
    area[rows[inside], columns[inside]] = True
    attention[rows[inside], columns[inside]] = weights[keys][inside]
    score = float(tokens.q[0, position, head] @ tokens.k[0, keys, head].mean(axis=0))
    return Retrieved(shot, latent, area, attention, score, float(weights[keys].sum()))


def _places(tokens: Tokens, shots: Sequence[Shot], keys: Ints) -> tuple[int, Ints, Ints, Ints]:
    """Return the shot of a chunk's keys, and the latent frame, row and column of each."""
    starts = video_starts(tokens)
    shot = int(np.searchsorted(starts, keys[0], side="right")) - 1
    _, height, width = shots[shot].grid
    frame, inside = np.divmod(keys - starts[shot], height * width)
    row, column = np.divmod(inside, width)
    return shot, frame, row, column


def _place(tokens: Tokens, shots: Sequence[Shot], position: int) -> tuple[int, int, int, int]:
    shot, latent, row, column = _places(tokens, shots, np.array([position]))
    return shot, int(latent[0]), int(row[0]), int(column[0])


def _videos(tokens: Tokens) -> list[Segment]:
    return [segment for segment in tokens.stream.segments if segment.kind == "video"]


def _video_chunks(tokens: Tokens, plan: SamplePlan, chunks: NDArray[np.int32]) -> list[int]:
    """Return those of the chosen chunks that can be drawn: a spec may route to text too."""
    bounds = tokens.stream.bounds
    segments = np.searchsorted(bounds, plan.chunk_bounds[chunks], side="right") - 1
    pairs = zip(chunks.tolist(), segments.tolist(), strict=True)
    return [chunk for chunk, s in pairs if chunk >= 0 and tokens.stream.segments[s].kind == "video"]
