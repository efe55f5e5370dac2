"""RoutingSpec: which keys a query attends to, declared once, for any length."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sparsemoc.spec import checks
from sparsemoc.spec.anchors import WORDS, First, Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError, describe, did_you_mean
from sparsemoc.spec.stream import Stream

#: Most routes of a query: route dropout multiplies their number with 48 bits in 64.
MOST_ROUTES = 2**16 - 1


@dataclass(frozen=True)
class Block:
    """Query unit: groups of `n` tokens, counted from the chunk's start, that share one selection.

    A group never crosses a chunk. Its score is that of the float32 mean of its members that are in the query range and
    valid; a chunk is a candidate unless the anchors of every such member cover it whole. Anchors stay per token.

    Args:
        n: tokens to a group.

    Raises:
        SpecError: n < 1 or not a whole number.
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", checks.whole(self.n, "Block: n", least=1))


@dataclass(frozen=True)
class RouteDropout:
    """Route dropout, for training: random routes taken away and added, the same on every backend.

    Args:
        off: p_max of the drop-off; each query loses floor(p * |R|) routes, p uniform on [0, p_max).
        into: mean of the Poisson number of chunks that drop-in adds.
        into_max: most chunks that drop-in adds; it widens `Layout.selected`.

    Raises:
        SpecError: `off` outside [0, 1], a negative or non-finite `into`, a negative `into_max`.

    Source: context drop-off and drop-in, arXiv 2508.21058.
    """

    off: float = 0.0
    into: float = 0.0
    into_max: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "off", checks.real(self.off, "RouteDropout: off", least=0.0, most=1.0))
        object.__setattr__(self, "into", checks.real(self.into, "RouteDropout: into", least=0.0))
        object.__setattr__(
            self, "into_max", checks.whole(self.into_max, "RouteDropout: into_max", least=0, most=MOST_ROUTES)
        )


@dataclass(frozen=True)
class RoutingSpec:
    """A Mixture of Contexts routing, declared. The defaults are the paper's single-shot setting.

    Query i attends to its anchors A(i) and to the keys of the `top_k` candidate chunks R(i) with the highest score
    s(i, j) = <q_i, mean of the keys of chunk j>; ties go to the lower chunk number.

    Args:
        stream: the tokens; None leaves it to the call.
        chunks: how segments are cut into chunks.
        top_k: routed chunks per query; one number, or one per query head.
        anchors: any of "text", "caption", "shot", "segment", "frame", "chunk", first(...), window(...).
        causal: "none"; "chunk" (routes only to earlier chunks); "token" (as "chunk", and no later key at all).
        routable: kinds whose chunks are candidates; None means every kind but text.
        dense_queries: kinds whose queries attend to every key and have no routes.
        dense_scope: "all", or "past", which holds dense queries to chunks up to their own, plus their anchors.
        unit: "token", or Block(n): one selection per group of n queries.
        dropout: RouteDropout for training, or None.

    Raises:
        SpecError: a value outside these rules.

    Source: arXiv 2508.21058, equations 2 and 3.
    """

    stream: Stream | None = None
    chunks: Chunks = field(default_factory=Chunks)
    top_k: int | tuple[int, ...] = 3
    anchors: tuple[str | First | Window, ...] = ("text", "chunk")
    causal: str = "none"
    routable: tuple[str, ...] | None = None
    dense_queries: tuple[str, ...] = ("text",)
    dense_scope: str = "all"
    unit: str | Block = "token"
    dropout: RouteDropout | None = None

    def __post_init__(self) -> None:
        if self.stream is not None and not isinstance(self.stream, Stream):
            raise SpecError(
                f"RoutingSpec: stream must be a Stream or None, got {describe(self.stream)}. "
                'Hint: Stream((Segment("video", 1024),)).'
            )
        if not isinstance(self.chunks, Chunks):
            raise SpecError(
                f"RoutingSpec: chunks must be a Chunks value, got {describe(self.chunks)}. Hint: Chunks(size=256)."
            )
        object.__setattr__(self, "top_k", _checked_top_k(self.top_k))
        object.__setattr__(self, "anchors", _checked_anchors(self.anchors))
        checks.word(self.causal, "RoutingSpec: causal", ("none", "chunk", "token"))
        if self.routable is not None:
            object.__setattr__(
                self, "routable", checks.words(self.routable, "RoutingSpec: routable", 'Hint: routable=("video",).')
            )
        dense = checks.words(
            self.dense_queries, "RoutingSpec: dense_queries", 'Hint: dense_queries=("text",), or () for none.'
        )
        object.__setattr__(self, "dense_queries", dense)
        checks.word(self.dense_scope, "RoutingSpec: dense_scope", ("all", "past"))
        if not isinstance(self.unit, Block) and not (isinstance(self.unit, str) and self.unit == "token"):
            raise SpecError(
                f'RoutingSpec: unit must be "token" or Block(n), got {describe(self.unit)}.'
                f"{did_you_mean(self.unit, ('token',)) or ' Hint: unit=Block(16).'}"
            )
        if self.dropout is not None and not isinstance(self.dropout, RouteDropout):
            raise SpecError(
                f"RoutingSpec: dropout must be a RouteDropout or None, got {describe(self.dropout)}. "
                "Hint: RouteDropout(off=0.5, into=1.0)."
            )
        if self.stream is not None and self.chunks.bounds is not None:
            self.chunks.cuts(self.stream)  # raises where the given bounds do not fit the stream
        self.line  # noqa: B018  made now: compilers that read it later cannot run what makes it

    @cached_property
    def line(self) -> str:
        """The spec as one line of JSON, equal for equal specs: what stands for it where only text can."""
        from sparsemoc.spec import serial  # here, since serial builds specs

        return serial.spec_line(self)

    def top_k_of(self, heads: int) -> tuple[int, ...]:
        """Return the top_k of each of `heads` query heads.

        Raises:
            SpecError: top_k is given per head, for another number of heads.
        """
        if isinstance(self.top_k, int):
            return (self.top_k,) * heads
        if len(self.top_k) != heads:
            raise SpecError(
                f"RoutingSpec: top_k must hold one number per query head, {heads}, got {len(self.top_k)} numbers. "
                "Hint: give one number for all heads."
            )
        return self.top_k

    def may_route_to(self, kind: str) -> bool:
        """Return whether chunks of segments of a kind are candidates."""
        return kind != "text" if self.routable is None else kind in self.routable

    @property
    def max_top_k(self) -> int:
        """The largest top_k of any head."""
        return self.top_k if isinstance(self.top_k, int) else max(self.top_k)

    def to_json(self) -> str:
        """Return the spec as JSON text: `version: 1` and every field, defaults too.

        `RoutingSpec.from_json` and `sparsemoc.load_spec` read it back exactly.
        """
        from sparsemoc.spec import serial  # here, since serial builds specs

        return serial.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> RoutingSpec:
        """Return the spec that `to_json` wrote, exactly, or one written by hand: what is left out takes its default.

        Args:
            text: JSON, as text or as UTF-8 bytes.

        Raises:
            SpecError: not JSON, an unknown key (with a "did you mean"), another version, a value outside the rules.
        """
        from sparsemoc.spec import serial  # here, since serial builds specs

        return serial.from_json(text)


def _checked_top_k(top_k: Any) -> int | tuple[int, ...]:
    hint = "Use one number, or a tuple with one per query head."
    if not checks.is_items(top_k):
        return checks.whole(top_k, "RoutingSpec: top_k", least=0, most=MOST_ROUTES, hint=hint)
    if not top_k:
        raise SpecError(f"RoutingSpec: top_k must hold at least one number, got {describe(top_k)}. {hint}")
    return tuple(checks.whole(k, "RoutingSpec: top_k", least=0, most=MOST_ROUTES, hint=hint) for k in top_k)


def _checked_anchors(anchors: Any) -> tuple[str | First | Window, ...]:
    if not checks.is_items(anchors):
        raise SpecError(
            f"RoutingSpec: anchors must be a tuple, got {describe(anchors)}. "
            'Hint: anchors=("text", "chunk"), or () for none.'
        )
    for anchor in anchors:
        if isinstance(anchor, (First, Window)) or (isinstance(anchor, str) and anchor in WORDS):
            continue
        listed = ", ".join(f'"{word}"' for word in WORDS)
        raise SpecError(
            f"RoutingSpec: anchors must hold {listed}, first(...) or window(...), got {describe(anchor)}."
            f"{_anchor_hint(anchor)}"
        )
    return tuple(anchors)


def _anchor_hint(anchor: object) -> str:
    if isinstance(anchor, str) and anchor in ("first", "window"):
        return f" Hint: {anchor}(4), the function, not the word."
    return did_you_mean(anchor, (*WORDS, "first(...)", "window(...)"))
