"""What is measured: a prompt and shots, in three lengths; and how often a step is called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparsemoc.backends import Problem, get_backend
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.tuning.problems import Arrays, NamedProblem, arrays

#: "tiny" tries the machinery: its times mean nothing.
TINY, SMALL, LARGE = "tiny", "small", "large"
DTYPES = ("float32", "bfloat16")

#: Rounds and iterations of each step; the fewest rounds for long calls.
_TURNS = {
    "plan": (10, 1), "pool": (20, 5), "route": (20, 1), "index": (20, 5), "index_forward": (20, 5), "attend": (15, 1),
    "backward": (10, 1), "merge": (20, 5), "call": (30, 10),
}  # fmt: skip
_FEW = {"plan": (5, 1), "attend": (5, 1), "backward": (3, 1)}
#: Of a backend that takes one query at a time.
_LEAST = (3, 1)


def turns(step: str, size: str, backend: str | None) -> tuple[int, int]:
    """Return rounds, and calls of a round: always the same for the same benchmark, so that runs compare."""
    if backend == "reference":
        return _LEAST
    return _FEW.get(step, (10, 1)) if size == LARGE else _TURNS[step]


def problem(size: str) -> NamedProblem:
    """Return the problem of a size: text and own shot are anchors, two query heads to a key head.

    About 2,048 ("small") and 16,384 tokens ("large").
    """
    prompt, shots, tokens, chunk, heads, head_dim = {
        TINY: (4, 3, 12, 5, 2, 16), SMALL: (64, 8, 248, 32, 4, 64), LARGE: (64, 8, 2040, 256, 2, 64),
    }[size]  # fmt: skip
    videos = (Segment("video", tokens, shot=shot) for shot in range(shots))
    stream = Stream((Segment("text", prompt), *videos))
    spec = RoutingSpec(stream=stream, chunks=Chunks(size=chunk), top_k=2, anchors=("text", "shot"))
    return NamedProblem(
        name=f"micro/{size}", about=f"a prompt of {prompt}, {shots} shots of {tokens} tokens", spec=spec,
        heads=heads, kv_heads=heads // 2, head_dim=head_dim, v_head_dim=head_dim,
    )  # fmt: skip


def asked(named: NamedProblem, dtype: str, framework: str, device: str, backward: bool) -> Problem:
    """Return a problem as a backend is asked about it."""
    return Problem(
        plan=named.plan(), framework=framework, device=device, dtype=dtype, batch=1, heads=named.heads,
        kv_heads=named.kv_heads, head_dim=named.head_dim, v_head_dim=named.v_head_dim, backward=backward,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Given:
    """The NumPy arrays that every backend is given: a step's input does not depend on who makes it."""

    arrays: Arrays
    centroids: np.ndarray
    selected: np.ndarray
    out: np.ndarray
    lse: np.ndarray


@lru_cache(maxsize=4)
def given(size: str, dtype: str) -> Given:
    """Return the arrays of a size, and what the steps before each step make of them on the CPU."""
    named, x = problem(size), arrays(problem(size), dtype)
    one, backend = asked(named, dtype, "numpy", "cpu", False), get_backend("numba")
    centroids = backend.pool(one, x.k, None)
    selected = backend.route(one, x.q, centroids, None, None)
    out, lse = backend.attend(one, x.q, x.k, x.v, Layout(selected, one.plan), named.head_dim**-0.5)
    return Given(x, centroids, selected, out, lse)
