"""The call that a peer makes: the problem, its arrays, and how many operations it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sparsemoc as moc
from bench.inputs import Inputs, Mode
from bench.peers.peer import Unavailable, installed
from sparsemoc.tuning.problems import NamedProblem


@dataclass(frozen=True, eq=False, kw_only=True)
class Call:
    """One problem, batch 1, without padding.

    Attributes:
        problem: its spec, stream and sizes.
        plan: the spec applied to its lengths: chunk bounds, anchors and candidates of every query.
        layout: the routes that our backend took, on the device of the arrays; None where a peer is to route by itself.
        inputs: the arrays.
        mode: "route", "attend" (the layout is given), "forward" (route and attend), or "forward+backward".
    """

    problem: NamedProblem
    plan: moc.Plan
    layout: moc.Layout | None
    inputs: Inputs
    mode: Mode

    @property
    def spec(self) -> moc.RoutingSpec:
        """The routing."""
        return self.problem.spec

    @property
    def scale(self) -> float:
        """The factor on q k^T."""
        return float(self.problem.head_dim**-0.5)

    @property
    def device(self) -> str:
        """Where the arrays are: "cpu" or "cuda"."""
        return self.inputs.device

    @property
    def backward(self) -> bool:
        """Whether the gradients of q, k and v are asked for."""
        return self.mode == "forward+backward"

    def tensors(self) -> tuple[Any, Any, Any, Any]:
        """Return q, k, v and d_out, (1, tokens, heads, head_dim), as torch tensors.

        Raises:
            Unavailable: torch is not installed.
        """
        installed("torch")
        return self.inputs.tensors()

    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """Return q, k, v and d_out, (1, tokens, heads, head_dim), as NumPy arrays.

        Raises:
            Unavailable: they are on a GPU.
        """
        if self.device != "cpu":
            raise Unavailable("takes NumPy arrays: the CPU alone has them")
        return self.inputs.q, self.inputs.k, self.inputs.v, self.inputs.d_out

    @cached_property
    def pairs(self) -> int:
        """(head, query, key) triples that the layout keeps."""
        assert self.layout is not None, "asked before the layout is taken away"
        return self.layout.pairs()

    @cached_property
    def dense_pairs(self) -> int:
        """(head, query, key) triples of dense attention, as causal as the problem."""
        queries, keys = self.problem.queries, self.problem.tokens
        if not self.problem.token_causal:
            return self.problem.heads * queries * keys
        first = self.plan.q_start + 1  # keys of the first query
        return self.problem.heads * queries * (2 * first + queries - 1) // 2

    def flops(self, pairs: int) -> int:
        """Return the operations on so many pairs: two products forward, five backward, one of which repeats scores."""
        wide, narrow = self.problem.head_dim, self.problem.v_head_dim
        return 2 * pairs * (wide + narrow + (3 * wide + 2 * narrow if self.backward else 0))

    def routing_flops(self) -> int:
        """Return the operations of a table of scores, (heads, queries, chunks)."""
        return 2 * self.problem.heads * self.problem.queries * self.plan.chunks * self.problem.head_dim
