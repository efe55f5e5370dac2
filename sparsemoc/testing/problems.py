"""A problem: everything one call of `moc.attention` needs, as a recipe that its repr rebuilds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

# Not used here by name: `Problem.repro()` is evaluated with the names of this module.
from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import Block, RouteDropout, RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.testing.sample import Floats, Sample, split

__all__ = [
    "DATA",
    "STRIDES",
    "Arrays",
    "Block",
    "Chunks",
    "First",
    "Problem",
    "RouteDropout",
    "RoutingSpec",
    "Segment",
    "Stream",
    "Window",
    "dtype_of",
]

#: How arrays lie in memory. Every kind shows the same values.
STRIDES = ("plain", "transposed", "reversed", "sliced", "broadcast")


@dataclass(frozen=True, eq=False)
class Arrays:
    """The arrays of a problem, tokens before heads: (batch, tokens, heads, head_dim), or packed without a batch axis.

    d_lse has the shape of lse, (batch, heads, tokens), or packed (heads, tokens).
    """

    q: Floats
    k: Floats
    v: Floats
    d_out: Floats
    d_lse: Floats

    def as_type(self, dtype: Any) -> Arrays:
        """Return the same arrays in another dtype."""
        return Arrays(*(getattr(self, name).astype(dtype) for name in ("q", "k", "v", "d_out", "d_lse")))


@dataclass(frozen=True)
class Problem:
    """One call of `moc.attention` and its backward pass. The numbers come from `data` and `data_seed`.

    `streams` holds one stream, shared by the batch, or, where `packed`, one per sample.
    """

    spec: RoutingSpec
    streams: tuple[Stream, ...]
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 1
    v_head_dim: int = 1
    dtype: str = "float32"
    data: str = "normal"
    data_seed: int = 0
    key_lengths: tuple[tuple[int, ...], ...] | None = None
    q_start: int | None = None
    q_tokens: int | None = None
    axes: str = "bshd"
    packed: bool = False
    scale: float | None = None
    training: bool = False
    seed: int | None = None
    batch_start: int = 0
    head_start: int = 0
    strides: str = "plain"
    deterministic: bool | None = None
    given: Arrays | None = field(default=None, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Number of keys of a sample; packed: of all samples."""
        return sum(stream.tokens for stream in self.streams)

    @property
    def queries(self) -> int:
        """Number of queries of a sample; packed: of all samples."""
        return self.tokens if self.q_tokens is None else self.q_tokens

    @property
    def first_query(self) -> int:
        """Stream position of query 0."""
        return self.tokens - self.queries if self.q_start is None else self.q_start

    @cached_property
    def arrays(self) -> Arrays:
        """The arrays that the recipe gives, or those of `with_arrays`."""
        return self.given if self.given is not None else _made(self)

    def but(self, **changes: Any) -> Problem:
        """Return the problem with some fields changed."""
        return replace(self, **changes)

    def with_arrays(self, **changes: Floats) -> Problem:
        """Return the problem with some arrays replaced; its repr still shows the recipe."""
        return replace(self, given=replace(self.arrays, **changes))

    def samples(self) -> list[Sample]:
        """Return the problem sample by sample, for the oracle."""
        return split(
            self.arrays.q, self.arrays.k, self.arrays.v, self.spec,
            stream=self.streams if self.packed else self.streams[0], key_lengths=self.key_lengths,
            q_start=None if self.packed else self.first_query, batch_start=self.batch_start, scale=self.scale,
            training=self.training, seed=self.seed, head_start=self.head_start,
        )  # fmt: skip

    def key_length_array(self) -> Any:
        """Return key_lengths as the call takes them: int32, (batch or samples, most segments), zero-filled."""
        if self.key_lengths is None:
            return None
        width = max(len(stream.segments) for stream in self.streams)
        return np.array([row + (0,) * (width - len(row)) for row in self.key_lengths], np.int32)

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `moc.attention` that describe the problem."""
        return {
            "stream": self.streams if self.packed else self.streams[0],
            "key_lengths": self.key_length_array(),
            "scale": self.scale,
            "axes": self.axes,
            "q_start": self.q_start,
            "training": self.training,
            "seed": self.seed,
            "batch_start": self.batch_start,
            "head_start": self.head_start,
            "deterministic": self.deterministic,
        }

    def present(self, x: Floats) -> Floats:
        """Return an array in the axes and with the strides of the problem."""
        shown = np.swapaxes(x, -3, -2) if self.axes == "bhsd" else x
        tokens, heads = (-2, -3) if self.axes == "bhsd" else (-3, -2)
        if self.strides == "transposed":
            return np.swapaxes(np.ascontiguousarray(np.swapaxes(shown, -3, -2)), -3, -2)
        if self.strides == "reversed":
            return np.flip(np.flip(shown, tokens).copy(), tokens)
        if self.strides == "sliced":
            wide = np.full((*shown.shape[:-1], 2 * shown.shape[-1]), np.nan, x.dtype)
            wide[..., ::2] = shown
            return wide[..., ::2]
        if self.strides == "broadcast":
            one = np.ascontiguousarray(np.take(shown, [0], axis=heads))
            if np.array_equal(np.broadcast_to(one, shown.shape), shown, equal_nan=True):
                return np.broadcast_to(one, shown.shape)
        return np.ascontiguousarray(shown)

    def restore(self, x: Floats) -> Floats:
        """Return a result in the axes of the problem as (..., tokens, heads, head_dim)."""
        return np.swapaxes(x, -3, -2) if self.axes == "bhsd" else x

    def repro(self) -> str:
        """Return a line that rebuilds the problem after `from sparsemoc.testing.problems import *`."""
        return f"problem = {self!r}"


def dtype_of(name: str) -> Any:
    """Return the NumPy dtype of a name; bfloat16 needs ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.standard_normal(shape)


def _integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.integers(-2, 3, shape).astype(np.float64)


def _equal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """All tokens the same small integers: every score ties."""
    return np.broadcast_to(_integers(rng, (*shape[:-3], 1, *shape[-2:])), shape).copy()


def _duplicates(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Rows out of a pool of two: chunks repeat."""
    pool = _integers(rng, (2, shape[-1]))
    return pool[rng.integers(0, 2, shape[:-1])]


def _offset(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """A mean much larger than the spread: scores computed in low precision all collapse."""
    return rng.standard_normal(shape) + 30.0


def _huge(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Logits far beyond what exp can take without the maximum taken out; still finite in float16."""
    return np.clip(rng.standard_normal(shape) * 1e4, -6e4, 6e4)


def _signed_zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.choice(np.array([0.0, -0.0, 0.0, -0.0, 1.0, -1.0]), shape)


def _nan_row(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    x = rng.standard_normal(shape)
    rows = x.reshape(-1, shape[-1])
    rows[rng.integers(len(rows))] = np.nan
    return rows.reshape(shape)


_Maker = Callable[[np.random.Generator, tuple[int, ...]], Floats]

#: How the numbers of q and of k are made. v is normal, but for signed zeros and NaN rows.
DATA: dict[str, tuple[_Maker, _Maker, _Maker]] = {
    "normal": (_normal, _normal, _normal),
    "integers": (_integers, _integers, _normal),
    "equal": (_integers, _equal, _normal),
    "duplicates": (_integers, _duplicates, _normal),
    "offset": (_normal, _offset, _normal),
    "huge": (_normal, _huge, _normal),
    "huge queries": (_huge, _huge, _huge),
    "signed zeros": (_signed_zeros, _signed_zeros, _signed_zeros),
    "nan key": (_normal, _nan_row, _normal),
    "nan query": (_nan_row, _normal, _normal),
    "nan value": (_normal, _normal, _nan_row),
}


def _made(problem: Problem) -> Arrays:
    rng = np.random.default_rng(problem.data_seed)
    dtype = dtype_of(problem.dtype)
    make_q, make_k, make_v = DATA[problem.data]
    lead = () if problem.packed else (problem.batch,)
    q = make_q(rng, (*lead, problem.queries, problem.heads, problem.head_dim))
    k = make_k(rng, (*lead, problem.tokens, problem.kv_heads, problem.head_dim))
    v = make_v(rng, (*lead, problem.tokens, problem.kv_heads, problem.v_head_dim))
    if problem.strides == "broadcast":
        q, k, v = (np.broadcast_to(x[..., :1, :], x.shape).copy() for x in (q, k, v))
    d_out = rng.standard_normal((*q.shape[:-1], problem.v_head_dim))
    d_lse = rng.standard_normal((*lead, problem.heads, problem.queries))
    lse_dtype = np.float64 if problem.dtype == "float64" else np.float32
    return Arrays(q.astype(dtype), k.astype(dtype), v.astype(dtype), d_out.astype(dtype), d_lse.astype(lse_dtype))
