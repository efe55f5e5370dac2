"""Plan: a spec applied to the lengths of a call. It holds no data and is made once for the same lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec import checks
from sparsemoc.spec.compile import compile_sample
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.sample_plan import SamplePlan
from sparsemoc.spec.stream import Segment, Stream


@dataclass(frozen=True)
class Plan:
    """A routing spec applied to streams and a query range.

    Attributes:
        spec: the routing spec.
        streams: one stream that the whole batch shares, or, packed, one for each sample, end to end.
        packed: whether samples stand end to end in one token axis.
        q_start: stream position of the first query; 0 when packed.
        q_tokens: number of queries; packed, of all samples together.
    """

    spec: RoutingSpec
    streams: tuple[Stream, ...]
    packed: bool
    q_start: int
    q_tokens: int

    def __post_init__(self) -> None:
        self.line  # noqa: B018  made now: compilers that read it later cannot run what makes it

    @cached_property
    def samples(self) -> tuple[SamplePlan, ...]:
        """The compiled samples without padding: one that the batch shares, or one for each packed sample."""
        return tuple(self.sample(index) for index in range(len(self.streams)))

    def sample(self, index: int, lengths: Sequence[int] | None = None) -> SamplePlan:
        """Return the compiled plan of a sample; with `lengths`, of its valid tokens only.

        Args:
            index: sample of a packed batch, or 0.
            lengths: valid tokens of each segment; they clamp to [0, tokens], further entries are ignored.
        """
        stream = self.streams[index]
        valid = tuple(segment.tokens for segment in stream.segments)
        if lengths is not None:
            valid = tuple(min(max(int(n), 0), most) for n, most in zip(lengths, valid, strict=False))
        q_tokens = stream.tokens if self.packed else self.q_tokens
        return compile_sample(self.spec, stream, self.q_start, q_tokens, valid)

    def batch(self, size: int, key_lengths: NDArray[np.int32] | None = None) -> list[Sample]:
        """Return each sample of a batch of `size` with its place in the arrays and its compiled plan.

        Args:
            size: the batch axis; 1 when packed.
            key_lengths: (batch, segments), packed (samples, most segments), or None.
        """
        count = len(self.streams) if self.packed else size
        rows = [None] * count if key_lengths is None else key_lengths.tolist()
        found, start = [], 0
        for index in range(count):
            plan = self.sample(index if self.packed else 0, rows[index])
            found.append(Sample(0 if self.packed else index, start, start, plan))
            start += plan.q_tokens if self.packed else 0
        return found

    @cached_property
    def line(self) -> str:
        """The plan as one line of JSON, equal for equal plans; `plan_of_line` reads it back."""
        table = [self.spec.line, [stream.line for stream in self.streams], self.packed, self.q_start, self.q_tokens]
        return json.dumps(table, separators=(",", ":"))

    @property
    def k_tokens(self) -> int:
        """Number of keys; packed, of all samples together."""
        return sum(stream.tokens for stream in self.streams)

    @cached_property
    def chunks(self) -> int:
        """Number of chunks of a sample; packed, of the one with the most."""
        return max(sample.chunks for sample in self.samples)

    @cached_property
    def slots(self) -> int:
        """Width of `Layout.selected`: min(top_k, chunks), and into_max more where the spec has route dropout."""
        added = self.spec.dropout.into_max if self.spec.dropout is not None else 0
        return min(self.spec.max_top_k, self.chunks) + added

    @property
    def most_segments(self) -> int:
        """Segments of the sample with the most: the width of `key_lengths`."""
        return max(len(stream.segments) for stream in self.streams)


@dataclass(frozen=True)
class Sample:
    """One sample's place in the arrays of a call: batch row, first query row, first key row; and its plan."""

    row: int
    q_row: int
    k_row: int
    plan: SamplePlan


def plan(
    spec: RoutingSpec,
    stream: Stream | Sequence[Stream] | None = None,
    *,
    tokens: int | None = None,
    q_start: int | None = None,
    q_tokens: int | None = None,
) -> Plan:
    """Apply a spec to lengths. The same arguments give the same Plan, compiled once.

    Args:
        spec: the routing spec.
        stream: the tokens of every sample of a batch; a sequence of streams for a packed batch; None takes the
            spec's own, or, where it has none, one video segment of `tokens`.
        tokens: number of keys; checked against the stream where there is one.
        q_start: stream position of the first query; by default the queries are the last `q_tokens` of the stream.
        q_tokens: number of queries, by default all tokens of the stream.

    Returns:
        The Plan: chunk bounds, anchor ranges and candidates for every query range.

    Raises:
        SpecError: two different streams, a key length that is not the stream's, a query range outside it.
    """
    if not isinstance(spec, RoutingSpec):
        raise SpecError(f"plan: spec must be a RoutingSpec, got {describe(spec)}. Hint: sparsemoc.load_spec(path).")
    packed = stream is not None and not isinstance(stream, Stream)
    streams = _streams(spec, stream, tokens)
    total = sum(s.tokens for s in streams)
    if tokens is not None and tokens != total:
        raise SpecError(f"plan: tokens must equal the stream's {total} tokens, got {tokens}. Hint: check the segments.")
    if packed and (q_start is not None or q_tokens not in (None, total)):
        raise SpecError(
            f"plan: q_start and q_tokens must be left out for a packed batch, got {q_start} and {q_tokens}. "
            "Packed samples have as many queries as keys."
        )
    q_tokens = total if q_tokens is None else checks.whole(q_tokens, "plan: q_tokens", least=1)
    if q_start is None:
        q_start = total - q_tokens
        if q_start < 0:
            raise SpecError(f"plan: q_tokens must be at most the stream's {total} tokens, got {q_tokens}.")
    q_start = checks.whole(q_start, "plan: q_start", least=0)
    if q_start + q_tokens > total:
        raise SpecError(
            f"plan: q_start + q_tokens must be at most the stream's {total} tokens, got {q_start} + {q_tokens} = "
            f"{q_start + q_tokens}."
        )
    return _cached(spec, streams, packed, q_start, q_tokens)


@lru_cache(maxsize=256)
def _cached(spec: RoutingSpec, streams: tuple[Stream, ...], packed: bool, q_start: int, q_tokens: int) -> Plan:
    return Plan(spec, streams, packed, q_start, q_tokens)


@lru_cache(maxsize=256)
def plan_of_line(line: str) -> Plan:
    """Return the plan that `Plan.line` wrote."""
    spec, streams, packed, q_start, q_tokens = json.loads(line)
    return _cached(
        RoutingSpec.from_json(spec), tuple(Stream.from_json(one) for one in streams), packed, q_start, q_tokens
    )


def _streams(spec: RoutingSpec, stream: object, tokens: int | None) -> tuple[Stream, ...]:
    if stream is None:
        if spec.stream is not None:
            return (spec.stream,)
        if tokens is None:
            raise SpecError("plan: stream or tokens must be given, for the spec has no stream of its own.")
        return (Stream((Segment("video", checks.whole(tokens, "plan: tokens", least=1)),)),)
    if isinstance(stream, Stream):
        streams: tuple[Stream, ...] = (stream,)
    elif isinstance(stream, Sequence) and not isinstance(stream, str) and stream:
        streams = tuple(stream)
    else:
        raise SpecError(
            f"plan: stream must be a Stream, or a tuple of them for a packed batch, got {describe(stream)}."
        )
    for one in streams:
        if not isinstance(one, Stream):
            raise SpecError(f"plan: stream must hold Stream values, got {describe(one)}.")
        if spec.stream is not None and spec.stream != one:
            raise SpecError(
                "plan: stream must be left out, or equal the stream that the spec holds. "
                "Hint: dataclasses.replace(spec, stream=None) frees the spec from its stream."
            )
    return streams
