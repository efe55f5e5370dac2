"""Anchors: the keys that a query always attends to, as words or as `first(...)` and `window(...)`."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemoc.spec import checks

#: The anchors that take no argument.
WORDS = ("text", "caption", "shot", "segment", "frame", "chunk")


@dataclass(frozen=True)
class First:
    """The first `n` tokens or frames of the stream, or of every shot, for every query.

    Tokens count in stream order, frames count grids only. n counts stream positions, padding included.

    Args:
        n: number of tokens or frames; 0 gives none.
        unit: "token" or "frame".
        of: "stream", or "shot" for the first n of each shot.

    Raises:
        SpecError: a value outside these rules.
    """

    n: int
    unit: str = "token"
    of: str = "stream"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", checks.whole(self.n, "first: n", least=0))
        checks.word(self.unit, "first: unit", ("token", "frame"))
        checks.word(self.of, "first: of", ("stream", "shot"))


@dataclass(frozen=True)
class Window:
    """The query's own token, frame or chunk and `n` of them on either side.

    Tokens and chunks run across segments and are clipped to the stream; frames stay inside the own segment, and a
    query without a grid gets nothing. n counts stream positions, padding included.

    Args:
        n: number of units on either side; 0 leaves the own one.
        unit: "token", "frame" or "chunk".

    Raises:
        SpecError: a value outside these rules.
    """

    n: int
    unit: str = "token"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", checks.whole(self.n, "window: n", least=0))
        checks.word(self.unit, "window: unit", ("token", "frame", "chunk"))


def first(n: int, unit: str = "token", of: str = "stream") -> First:
    """Return the anchor "the first n tokens or frames of the stream, or of every shot". See `First`."""
    return First(n, unit, of)


def window(n: int, unit: str = "token") -> Window:
    """Return the anchor "own token, frame or chunk and n on either side". See `Window`."""
    return Window(n, unit)
