"""The grid: what is measured at one length, from a thirty-second of all pairs to all of them."""

from __future__ import annotations

from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.tuning.problems import NamedProblem

#: Lengths are powers of two, the longest last, as far as the budget goes.
SHORTEST, LONGEST = 256, 16384
#: Chunks of a stream without anchors; with the best k of them, k / CHUNKS of all pairs are kept.
CHUNKS = 32
TOP_KS = (1, 2, 4, 8, 16, CHUNKS)
#: The stream with anchors: shots, the text's share of it, chunks, routes.
SHOTS, TEXT, SHOT_CHUNKS, SHOT_TOP_K = 8, 1 / 128, 64, 3


def lengths(longest: int) -> list[int]:
    """Return the lengths up to one."""
    return [SHORTEST << power for power in range(max(1, (longest // SHORTEST).bit_length()))]


def problems(tokens: int, heads: int, head_dim: int) -> list[NamedProblem]:
    """Return the problems of a length: without anchors, of growing density, and one of shots as in the paper."""
    plain = Stream((Segment("video", tokens),))
    made = [
        _problem(
            f"{tokens}/{top_k}",
            f"{tokens:,} tokens, {CHUNKS} chunks, the best {top_k}, no anchors",
            RoutingSpec(stream=plain, chunks=Chunks(size=-(-tokens // CHUNKS)), top_k=top_k, anchors=()),
            heads,
            head_dim,
        )
        for top_k in TOP_KS
    ]
    shots = RoutingSpec(
        stream=_shots(tokens), chunks=Chunks(size=-(-tokens // SHOT_CHUNKS)), top_k=SHOT_TOP_K, anchors=("text", "shot")
    )
    about = f"{tokens:,} tokens, {SHOTS} shots: own shot and text as anchors, the best {SHOT_TOP_K} chunks"
    return [*made, _problem(f"{tokens}/shots", about, shots, heads, head_dim)]


def _shots(tokens: int) -> Stream:
    text = max(1, round(tokens * TEXT))
    bounds = [text + (tokens - text) * shot // SHOTS for shot in range(SHOTS + 1)]
    shots = (Segment("video", bounds[i + 1] - bounds[i], shot=i) for i in range(SHOTS))
    return Stream((Segment("text", text), *shots))


def _problem(name: str, about: str, spec: RoutingSpec, heads: int, head_dim: int) -> NamedProblem:
    return NamedProblem(
        name=f"crossover/{name}", about=about, spec=spec, heads=heads, kv_heads=heads, head_dim=head_dim,
        v_head_dim=head_dim,
    )  # fmt: skip
