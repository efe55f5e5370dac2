"""A compiler that counts its graphs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest


class Counted:
    """A backend of torch.compile that traces gradients too, makes no code, and counts the graphs that compute."""

    def __init__(self, dynamo: Any) -> None:
        self.graphs = 0
        self.backend = dynamo.lookup_backend("aot_eager")

    def __call__(self, graph: Any, inputs: Any) -> Any:
        # An import while the first graph of a process is traced gives an empty one.
        self.graphs += any(node.op == "call_function" for node in graph.graph.nodes)
        return self.backend(graph, inputs)


@pytest.fixture
def counted() -> Iterator[Counted]:
    dynamo = import_module("torch._dynamo")
    dynamo.reset()
    yield Counted(dynamo)
    dynamo.reset()
