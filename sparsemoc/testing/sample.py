"""One sample of a problem, as the oracle sees it, and the cut of a whole call into samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Segment, Stream
from sparsemoc.testing.oracle_rules import (
    Bools,
    Unit,
    candidate_mask,
    chunk_bounds,
    dense_queries,
    units_of,
    valid_tokens,
)

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of a problem: the spec, the stream, its arrays and the global numbers that dropout counts by."""

    spec: RoutingSpec
    stream: Stream
    q: Floats
    k: Floats
    v: Floats
    key_lengths: tuple[int, ...] | None = None
    q_start: int = 0
    scale: float | None = None
    training: bool = False
    seed: int | None = None
    batch: int = 0
    head_start: int = 0
    slots: int | None = None

    @property
    def q_tokens(self) -> int:
        """Number of queries."""
        return int(self.q.shape[0])

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self.q.shape[1])

    @property
    def factor(self) -> float:
        """The factor on the logits."""
        return float(self.q.shape[2]) ** -0.5 if self.scale is None else self.scale

    @property
    def top_k(self) -> tuple[int, ...]:
        """The top_k of each query head."""
        given = self.spec.top_k
        return (given,) * self.heads if isinstance(given, int) else given

    @cached_property
    def chunks(self) -> int:
        """Number of chunks of the stream."""
        return len(chunk_bounds(self.spec, self.stream)) - 1

    @cached_property
    def valid(self) -> Bools:
        """Which tokens of the stream are no padding."""
        return valid_tokens(self.stream, self.key_lengths)

    @property
    def valid_queries(self) -> Bools:
        """Which queries are no padding."""
        return self.valid[self.q_start : self.q_start + self.q_tokens]

    @cached_property
    def dense(self) -> Bools:
        """Which queries are dense."""
        return dense_queries(self.spec, self.stream, self.q_start, self.q_tokens)

    @cached_property
    def units(self) -> list[Unit]:
        """The groups of routed queries that share a selection."""
        return units_of(self.spec, self.stream, self.q_start, self.valid_queries & ~self.dense)

    @cached_property
    def candidates(self) -> Bools:
        """C, as (units, chunks)."""
        return candidate_mask(self.spec, self.stream, self.units, self.q_start, self.q_tokens, self.valid)

    @cached_property
    def key_heads(self) -> list[int]:
        """The key head that each query head reads."""
        return [head // (self.heads // int(self.k.shape[1])) for head in range(self.heads)]


def split(
    q: Floats,
    k: Floats,
    v: Floats,
    spec: RoutingSpec,
    *,
    stream: Stream | Sequence[Stream] | None = None,
    key_lengths: Any = None,
    q_start: int | None = None,
    batch_start: int = 0,
    **common: Any,
) -> list[Sample]:
    """Cut a call into samples. Arrays are (batch, tokens, heads, head_dim), or packed (tokens, heads, head_dim).

    Packed samples lie end to end, one stream each; sample b of either counts as batch_start + b.
    """
    stream = stream if stream is not None else spec.stream
    if stream is None:
        stream = Stream((Segment("video", int(k.shape[-3])),))
    streams = (stream,) if isinstance(stream, Stream) else tuple(stream)
    if q.ndim == 3:
        ends = np.cumsum([one.tokens for one in streams])
        parts = [slice(end - one.tokens, end) for one, end in zip(streams, ends, strict=True)]
        triples = [(q[part], k[part], v[part]) for part in parts]
    else:
        streams = streams * q.shape[0]
        triples = list(zip(q, k, v, strict=True))
    top_k = spec.top_k if isinstance(spec.top_k, int) else max(spec.top_k)
    slots = min(top_k, max(len(chunk_bounds(spec, one)) - 1 for one in streams))
    slots += spec.dropout.into_max if spec.dropout else 0
    return [
        Sample(
            spec, one, *triple,
            key_lengths=None if key_lengths is None else tuple(int(n) for n in key_lengths[number]),
            q_start=one.tokens - triple[0].shape[0] if q_start is None else q_start,
            batch=batch_start + number, slots=slots, **common,
        )
        for number, (one, triple) in enumerate(zip(streams, triples, strict=True))
    ]  # fmt: skip


def join(parts: Sequence[Any], packed: bool, axis: int) -> Any:
    """Put the results of samples together: stacked as a batch, or, packed, end to end along `axis`."""
    return np.concatenate(parts, axis=axis) if packed else np.stack(parts)
