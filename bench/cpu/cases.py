"""The named cases: what is computed, and what is required of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.inputs import Inputs
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Required:
    """What a case must reach; None where nothing is asked.

    Attributes:
        forward, gradients: least share of the pair ratio: (dense time / our time) / (all pairs / kept pairs).
        routing: most time of routing, as a share of the forward that contains it.
        speedup: the forward must be more than this many times as fast as dense attention.
        memory: most memory of a process that makes one call, in units of the bytes of q, k, v and out.
        growth: most time per kept pair of the longest stream, in units of that of `Case.base` tokens.
    """

    forward: float | None = None
    gradients: float | None = None
    routing: float | None = None
    speedup: float | None = None
    memory: float | None = None
    growth: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem of float32, batch 1: a prompt and shots of nearly equal length, or one segment without anchors.

    Attributes:
        shot_tokens: tokens of a shot, about: the tokens after the prompt are shared out evenly over as many shots as
            fit best. None: one video segment and no anchors.
        prompt: text tokens at the start; they attend to everything.
        gradients: whether the gradients are measured as well.
        sizes: lengths of a sweep of growth; empty for a case of one length.
        base: the length of the sweep whose time per kept pair is 1.
    """

    name: str
    tokens: int
    heads: int
    head_dim: int
    chunk: int
    top_k: int
    required: Required
    shot_tokens: int | None = None
    prompt: int = 0
    gradients: bool = False
    sizes: tuple[int, ...] = ()
    base: int = 16384

    def stream(self) -> Stream:
        """Return the prompt and the shots."""
        if self.shot_tokens is None:
            return Stream((Segment("video", self.tokens),))
        video = self.tokens - self.prompt
        shots = max(1, round(video / self.shot_tokens))
        bounds = [video * shot // shots for shot in range(shots + 1)]
        segments = [Segment("video", bounds[i + 1] - bounds[i], shot=i) for i in range(shots)]
        return Stream((Segment("text", self.prompt), *segments) if self.prompt else tuple(segments))

    def spec(self) -> RoutingSpec:
        """Return the routing: own shot and text are anchors; no causality."""
        anchors = () if self.shot_tokens is None else ("text", "shot")
        return RoutingSpec(stream=self.stream(), chunks=Chunks(size=self.chunk), top_k=self.top_k, anchors=anchors)

    def at(self, tokens: int) -> Case:
        """Return the case at another length, shots and chunks as long as they are."""
        return dataclasses.replace(self, tokens=tokens, sizes=())

    def shrunk(self, tokens: int, heads: int) -> Case:
        """Return a small copy: as many shots and chunks, each shorter, and nothing required."""
        factor = min(1.0, tokens / (self.base if self.sizes else self.tokens))
        return dataclasses.replace(
            self,
            tokens=tokens,
            heads=heads,
            chunk=max(1, round(self.chunk * factor)),
            shot_tokens=None if self.shot_tokens is None else max(1, round(self.shot_tokens * factor)),
            prompt=math.ceil(self.prompt * factor),
            sizes=(tokens, 2 * tokens) if self.sizes else (),
            base=tokens,
            required=Required(),
        )


def normal(case: Case, count: int, seed: int = 0) -> list[Floats]:
    """Return independent normal numbers: neighbours choose different chunks, the hardest case for gathering."""
    random = np.random.default_rng(seed)
    shape = (1, case.tokens, case.heads, case.head_dim)
    return [random.standard_normal(shape, np.float32) for _ in range(count)]


def inputs(case: Case) -> Inputs:
    """Return the arrays of a case, the same ones each time."""
    q, k, v, d_out = normal(case, 4)
    return Inputs(dtype="float32", device="cpu", q=q, k=k, v=v, d_out=d_out)


def _shots(head_dim: int) -> Case:
    return Case(
        name=f"shots-d{head_dim}",
        tokens=16384,
        heads=8,
        head_dim=head_dim,
        chunk=256,
        top_k=2,
        shot_tokens=2040,
        prompt=64,
        gradients=True,
        required=Required(forward=0.87, gradients=0.75, routing=0.05),
    )


def _random(head_dim: int, share: float) -> Case:
    return Case(
        name=f"random-d{head_dim}",
        tokens=16384,
        heads=8,
        head_dim=head_dim,
        chunk=128,
        top_k=8,
        required=Required(forward=share),
    )


_SHORT = Case(
    name="short",
    tokens=2048,
    heads=8,
    head_dim=64,
    chunk=32,
    top_k=2,
    shot_tokens=248,
    prompt=64,
    required=Required(forward=0.5, speedup=1.0),
)

_LONG = dataclasses.replace(
    _shots(64),
    name="long",
    tokens=180_000,
    heads=2,
    sizes=(4096, 8192, 16384, 32768, 65536, 131072, 180_000),
    required=Required(memory=2.5, growth=1.3),
)

CASES = {case.name: case for case in (_shots(64), _shots(128), _random(64, 0.65), _random(128, 0.70), _SHORT, _LONG)}
