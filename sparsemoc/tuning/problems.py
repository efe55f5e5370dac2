"""Named problems: what real models ask for, to tune and to measure with.

Token counts, heads and head_dims are the models' own: latent frames x height x width in patches, from the published
configurations. Where a model was not trained with Mixture of Contexts, the routing is that of the paper's experiments
on Wan 2.1: a chunk to a latent frame, the own chunk and the text as anchors, the best three others.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError, describe, did_you_mean, one_of
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream


@dataclass(frozen=True, kw_only=True)
class NamedProblem:
    """One attention layer of a model, one sample.

    Attributes:
        name: "model/setting".
        about: what it is, and where its numbers come from.
        spec: the routing, with its stream.
        heads, kv_heads, head_dim, v_head_dim: sizes.
        q_segments: how many of the last segments ask, None for all: the earlier ones are a cache.
    """

    name: str
    about: str
    spec: RoutingSpec
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    q_segments: int | None = None

    @property
    def stream(self) -> Stream:
        """The tokens."""
        assert self.spec.stream is not None, "every named problem has one"
        return self.spec.stream

    @property
    def tokens(self) -> int:
        """Number of keys."""
        return self.stream.tokens

    @property
    def queries(self) -> int:
        """Number of queries, the last of the stream."""
        if self.q_segments is None:
            return self.tokens
        return sum(segment.tokens for segment in self.stream.segments[-self.q_segments :])

    @property
    def token_causal(self) -> bool:
        """Whether no query sees a later key, so that dense attention is causal too."""
        return self.spec.causal == "token"

    def plan(self) -> Plan:
        """Return the compiled spec."""
        return plan(self.spec, q_tokens=self.queries)

    def with_heads(self, heads: int) -> NamedProblem:
        """Return the problem with other heads, as many query heads to a key head where that divides them."""
        group = self.heads // self.kv_heads
        kv_heads = heads // group if heads % group == 0 else heads
        return dataclasses.replace(self, heads=heads, kv_heads=kv_heads)

    def shrunk(self, tokens: int, heads: int) -> NamedProblem:
        """Return a small copy of about so many tokens: as many segments and about as many chunks, each shorter."""
        factor = min(1.0, tokens / self.tokens)
        stream = Stream(tuple(_shrunk(segment, factor) for segment in self.stream.segments))
        size = self.spec.chunks.size
        chunks = dataclasses.replace(self.spec.chunks, size=None if size is None else math.ceil(size * factor))
        spec = dataclasses.replace(self.spec, stream=stream, chunks=chunks)
        return dataclasses.replace(self.with_heads(heads), spec=spec)


def _shrunk(segment: Segment, factor: float) -> Segment:
    if segment.grid is None:
        return dataclasses.replace(segment, tokens=max(1, round(segment.tokens * factor)))
    frames, height, width = segment.grid
    inside = max(factor, 1 / (height * width))  # frames lose patches first: routing is by frames
    side = math.sqrt(inside)
    height, width = max(1, round(height * side)), max(1, round(width * side))
    frames = max(1, round(frames * factor / inside))
    return Segment(segment.kind, grid=(frames, height, width), shot=segment.shot)


@dataclass(frozen=True, eq=False)
class Arrays:
    """The NumPy arrays of a call, (1, tokens, heads, head_dim): independent normal numbers."""

    q: NDArray[Any]
    k: NDArray[Any]
    v: NDArray[Any]
    d_out: NDArray[Any]


def arrays(problem: NamedProblem, dtype: str = "float32", seed: int = 0) -> Arrays:
    """Return the arrays of a problem, the same ones each time.

    Neighbours then choose different chunks: the hardest case for gathering, and not what a trained model gives.
    """
    random = np.random.default_rng(seed)
    if dtype == "bfloat16":
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
    else:
        kind = np.dtype(dtype)

    def normal(tokens: int, heads: int, width: int) -> NDArray[Any]:
        return random.standard_normal((1, tokens, heads, width), np.float32).astype(kind, copy=False)

    return Arrays(
        normal(problem.queries, problem.heads, problem.head_dim),
        normal(problem.tokens, problem.kv_heads, problem.head_dim),
        normal(problem.tokens, problem.kv_heads, problem.v_head_dim),
        normal(problem.queries, problem.heads, problem.v_head_dim),
    )


def _problem(
    name: str,
    about: str,
    stream: Stream,
    heads: int,
    head_dim: int,
    chunk: int,
    top_k: int,
    anchors: tuple[str, ...] = ("text", "chunk"),
    causal: str = "none",
    q_segments: int | None = None,
) -> NamedProblem:
    spec = RoutingSpec(stream=stream, chunks=Chunks(size=chunk), top_k=top_k, anchors=anchors, causal=causal)
    return NamedProblem(
        name=name, about=about, spec=spec, heads=heads, kv_heads=heads, head_dim=head_dim, v_head_dim=head_dim,
        q_segments=q_segments,
    )  # fmt: skip


def _video(frames: int, height: int, width: int, before: int = 0, after: int = 0) -> Stream:
    video = Segment("video", grid=(frames, height, width))
    text = [Segment("text", tokens) if tokens else None for tokens in (before, after)]
    return Stream(tuple(segment for segment in (text[0], video, text[1]) if segment is not None))


def _plain(tokens: int) -> Stream:
    return Stream((Segment("video", tokens),))


_SHOTS = Stream.multishot(shots=8, frames=16, height=30, width=47, caption=77, prompt=226)

PROBLEMS = {
    problem.name: problem
    for problem in (
        _problem(
            "paper/single-shot",
            "8 s at 320x192, 6,300 tokens, chunks of 256, top 3 (arXiv 2508.21058, table 2; heads are not published)",
            _video(7, 30, 30), 24, 128, 256, 3, anchors=("chunk",),
        ),
        _problem(
            "paper/multi-shot",
            "8 shots of 8 s at 480p, about 180,000 tokens, chunks of 1,280, top 5 (arXiv 2508.21058, table 1; heads "
            "are not published)",
            _SHOTS, 24, 128, 1280, 5, anchors=("text", "shot"), causal="chunk",
        ),
        _problem(
            "decode/new-shot",
            "the last shot of paper/multi-shot with its caption against the cache of all before",
            _SHOTS, 24, 128, 1280, 5, anchors=("text", "shot"), causal="chunk", q_segments=2,
        ),
        _problem(
            "wan-1.3b/480p",
            "Wan 2.1 T2V 1.3B, self-attention, 81 frames at 832x480 (the paper's setting, appendix H)",
            _video(21, 30, 52), 12, 128, 1560, 3, anchors=("chunk",),
        ),
        _problem(
            "wan-14b/720p", "Wan 2.1 and 2.2 14B, self-attention, 81 frames at 1280x720",
            _video(21, 45, 80), 40, 128, 3600, 3, anchors=("chunk",),
        ),
        _problem(
            "hunyuanvideo/720p", "HunyuanVideo 13B, video and then 256 text tokens, 129 frames at 1280x720",
            _video(33, 45, 80, after=256), 24, 128, 3600, 3,
        ),
        _problem(
            "cogvideox-5b/480p", "CogVideoX 5B, 226 text tokens and then video, 49 frames at 720x480",
            _video(13, 30, 45, before=226), 48, 64, 1350, 3,
        ),
        _problem(
            "ltx-2b/512p", "LTX-Video 2B, self-attention, 121 frames at 768x512",
            _video(16, 16, 24), 32, 64, 384, 3, anchors=("chunk",),
        ),
        _problem(
            "ltx-13b/704p", "LTX-Video 13B, self-attention, 121 frames at 1216x704",
            _video(16, 22, 38), 32, 128, 836, 3, anchors=("chunk",),
        ),
        _problem(
            "moba/32k", "MoBA's own benchmark: 32,768 tokens, 1 head, chunks of 2,048, own and the best 2",
            _plain(32_768), 1, 128, 2048, 2, anchors=("chunk",), causal="token",
        ),
        _problem(
            "flashmoba/8k", "FlashMoBA's benchmark at its shortest: 8,192 tokens, chunks of 128, own and the best 7",
            _plain(8_192), 32, 128, 128, 7, anchors=("chunk",), causal="token",
        ),
        _problem(
            "flashmoba/64k", "FlashMoBA's benchmark: 65,536 tokens, 2 x 16 heads, chunks of 128, own and the best 7",
            _plain(65_536), 32, 128, 128, 7, anchors=("chunk",), causal="token",
        ),
    )
}  # fmt: skip


def named(name: str) -> NamedProblem:
    """Return a named problem.

    Raises:
        SpecError: there is none of that name.
    """
    if name not in PROBLEMS:
        raise SpecError(f"problem must be {one_of(PROBLEMS)}, got {describe(name)}.{did_you_mean(str(name), PROBLEMS)}")
    return PROBLEMS[name]
