"""The exceptions of the library. Every message names the argument, the rule, the value and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from sparsemoc.spec.traced import is_traced


class SparsemocError(Exception):
    """Base of every error that sparsemoc raises on bad input."""


class SpecError(SparsemocError, ValueError):
    """A stream, a routing spec, or a file that holds one breaks a rule."""


class ShapeError(SparsemocError, ValueError):
    """The shapes, dtypes or devices of arrays disagree with each other or with the stream."""


class LayoutError(SparsemocError, ValueError):
    """A layout is malformed or was made for other lengths."""


class UnsupportedError(SparsemocError, NotImplementedError):
    """A backend (or, with "auto", every backend) refuses the problem; the text lists each reason."""


def describe(value: Any) -> str:
    """Return a short text of a value for an error message: its repr, cut at 80 characters, and its type."""
    if is_traced(value):
        return (
            f"a traced {value.dtype}{list(value.shape)} where a constant is needed "
            "(with jax.jit: name it in static_argnames, or close over it)"
        )
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python prints, a list nested too deep
        text = "a value too long to print"
    if len(text) > 80:
        text = text[:77] + "..."
    return f"{text} ({type(value).__name__})"


def one_of(allowed: Iterable[str]) -> str:
    """Return `"a", "b" or "c"` for an error message."""
    words = [f'"{word}"' for word in allowed]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """Return ` Did you mean "x"?`, or an empty text where nothing allowed is near `word`."""
    if not isinstance(word, str):
        return ""
    near = difflib.get_close_matches(word.lower(), list(allowed), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""
