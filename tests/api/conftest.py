"""Right calls of every public function, of which a test changes the one argument that it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc


class Calls:
    """Each function with right arguments; keyword arguments replace them."""

    STREAM = moc.Stream((moc.Segment("text", 3), moc.Segment("video", 12)))
    SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=2, stream=STREAM)
    FREE = replace(SPEC, stream=None)
    DROPOUT = replace(SPEC, dropout=moc.RouteDropout(off=0.5))
    PLAN = moc.plan(SPEC)

    def __init__(self) -> None:
        self.Q, self.K, self.V = (
            np.zeros(shape, np.float32) for shape in ((2, 15, 4, 8), (2, 15, 2, 8), (2, 15, 2, 6))
        )
        self.OUT, self.LSE = np.zeros((2, 15, 4, 6), np.float32), np.zeros((2, 4, 15), np.float32)
        self.PQ, self.PK, self.PV = (x.reshape(30, *x.shape[2:]) for x in (self.Q, self.K, self.V))
        self.LAYOUT = self.route()
        self.PACKED = self.route(q=self.PQ, k=self.PK, spec=self.FREE, stream=(self.STREAM, self.STREAM))
        self.CENTROIDS = self.pool()

    def attention(self, **given: Any) -> Any:
        return moc.attention(
            **{"q": self.Q, "k": self.K, "v": self.V, "spec": self.SPEC, "backend": "reference", **given}
        )

    def packed(self, **given: Any) -> Any:
        streams = (self.STREAM, self.STREAM)
        return self.attention(
            **{"q": self.PQ, "k": self.PK, "v": self.PV, "spec": self.FREE, "stream": streams, **given}
        )

    def grads(self, **given: Any) -> Any:
        arrays = {"q": self.Q, "k": self.K, "v": self.V, "d_out": self.OUT}
        return moc.attention_grads(**{**arrays, "spec": self.SPEC, "backend": "reference", **given})

    def route(self, **given: Any) -> Any:
        return moc.route(**{"q": self.Q, "k": self.K, "spec": self.SPEC, "backend": "reference", **given})

    def attend(self, **given: Any) -> Any:
        arrays = {"q": self.Q, "k": self.K, "v": self.V}
        return moc.attend(**{**arrays, "layout": self.LAYOUT, "backend": "reference", **given})

    def pool(self, **given: Any) -> Any:
        return moc.pool(**{"k": self.K, "plan": self.PLAN, "backend": "reference", **given})


@pytest.fixture(scope="session")
def calls() -> Calls:
    return Calls()


@pytest.fixture(scope="session")
def text_of() -> Callable[[type[Exception], Callable[[], object]], str]:
    """Return the text of the error of exactly this class that a call raises."""

    def text(kind: type[Exception], call: Callable[[], object]) -> str:
        with pytest.raises(kind) as raised:
            call()
        assert type(raised.value) is kind
        assert isinstance(raised.value, moc.SparsemocError)
        return str(raised.value)

    return text
