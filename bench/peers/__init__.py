"""What others compute on the same data: dense attention, FlexAttention, MoBA's composition, and installed packages."""

from __future__ import annotations

from collections.abc import Iterator

import sparsemoc as moc
from bench.inputs import Inputs, Mode
from bench.peers import entry, flex, packages, sdpa, varlen
from bench.peers.call import Call
from bench.peers.peer import Outputs, Peer, Unavailable, guarded
from sparsemoc.tuning.problems import NamedProblem

__all__ = ["Call", "Outputs", "Peer", "Unavailable", "peers"]


def peers(problem: NamedProblem, plan: moc.Plan, layout: moc.Layout, inputs: Inputs, mode: Mode) -> Iterator[Peer]:
    """Yield every peer of a mode, those that are not installed too: they say so when they are prepared.

    Args:
        problem: what is computed.
        plan: its spec, compiled.
        layout: the routes that our backend took for these arrays, which "attend" obeys.
        inputs: the arrays, batch 1.
        mode: what is timed.
    """
    call = Call(problem=problem, plan=plan, layout=layout, inputs=inputs, mode=mode)
    sources = (flex.peers, varlen.peers, packages.peers, entry.peers)
    for source in sources if mode == "route" else (sdpa.peers, *sources):
        for peer in source(call):
            yield guarded(peer, inputs.device)
