"""Chunks: how each segment is cut into the units that routing picks from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from sparsemoc.spec import checks
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.spec.stream import Segment, Stream


@dataclass(frozen=True)
class Chunks:
    """The rule that partitions a stream into chunks; a chunk never crosses a segment boundary.

    Args:
        size: most tokens to a chunk; None makes one chunk of each segment.
        align: "frame" keeps whole frames together in segments with a grid: at most floor(size / frame) frames to a
            chunk, or, where a frame is larger than `size`, each frame cut by itself.
        tail: "balanced" cuts n tokens into ceil(n / size) parts whose lengths differ by at most one, the longer
            first (short scraps would win on noise); "short" makes every part `size` and the last one shorter.
        bounds: the cuts themselves, instead of the three above: 0, every segment boundary and the end among them.
    """

    size: int | None = 256
    align: str | None = None
    tail: str = "balanced"
    bounds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            size = checks.whole(self.size, "Chunks: size", least=1, hint="Use None for one chunk per segment.")
            object.__setattr__(self, "size", size)
        if self.align is not None:
            checks.word(self.align, "Chunks: align", ("frame",))
        checks.word(self.tail, "Chunks: tail", ("balanced", "short"))
        if self.bounds is not None:
            object.__setattr__(self, "bounds", self._checked_bounds(self.bounds))

    def _checked_bounds(self, bounds: object) -> tuple[int, ...]:
        if not checks.is_items(bounds):
            raise SpecError(f"Chunks: bounds must be a tuple of cuts (0, ..., tokens), got {describe(bounds)}.")
        if self.size != 256 or self.align is not None or self.tail != "balanced":
            raise SpecError(
                f"Chunks: bounds must stand alone, got size={describe(self.size)}, align={self.align!r}, "
                f"tail={self.tail!r} beside it. Hint: leave these out; they do not apply to given cuts."
            )
        cuts = tuple(checks.whole(cut, "Chunks: bounds", least=0) for cut in bounds)
        if len(cuts) < 2 or cuts[0] != 0:
            raise SpecError(f"Chunks: bounds must start with 0 and hold at least one more cut, got {describe(cuts)}.")
        for before, after in pairwise(cuts):
            if after <= before:
                raise SpecError(f"Chunks: bounds must be strictly ascending, got {before} before {after}.")
        return cuts

    def cuts(self, stream: Stream) -> tuple[int, ...]:
        """Return the chunk bounds of a stream: chunk c holds the tokens cuts[c] ... cuts[c + 1] - 1.

        Raises:
            SpecError: given `bounds` that lack a segment boundary or the end of this stream.
        """
        if self.bounds is not None:
            return self._given(stream)
        cuts = [0]
        for segment in stream.segments:
            for length in self._lengths(segment):
                cuts.append(cuts[-1] + length)
        return tuple(cuts)

    def _given(self, stream: Stream) -> tuple[int, ...]:
        assert self.bounds is not None
        held = set(self.bounds)
        if self.bounds[-1] != stream.tokens:
            raise SpecError(
                f"Chunks: bounds must end with the stream's {stream.tokens} tokens, got {self.bounds[-1]} as the last."
            )
        for boundary in stream.bounds:
            if boundary not in held:
                raise SpecError(
                    f"Chunks: bounds must hold every segment boundary of the stream, got {describe(self.bounds)}, "
                    f"where {boundary} is missing. A chunk never crosses a segment."
                )
        return self.bounds

    def _lengths(self, segment: Segment) -> Iterator[int]:
        if self.size is None:
            yield segment.tokens
        elif self.align is None or segment.grid is None:
            yield from _parts(segment.tokens, self.size, self.tail)
        elif segment.frame_tokens <= self.size:
            for frames in _parts(segment.grid[0], self.size // segment.frame_tokens, self.tail):
                yield frames * segment.frame_tokens
        else:
            for _ in range(segment.grid[0]):
                yield from _parts(segment.frame_tokens, self.size, self.tail)


def _parts(count: int, most: int, tail: str) -> Iterator[int]:
    """Cut `count` things into ceil(count / most) parts: balanced, the longer first, or full ones and a short tail."""
    parts = -(-count // most)
    if tail == "short":
        yield from [most] * (parts - 1)
        yield count - most * (parts - 1)
        return
    short, longer = divmod(count, parts)
    yield from [short + 1] * longer
    yield from [short] * (parts - longer)
