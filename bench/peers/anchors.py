"""The anchored pairs of a plan as families of sequences, each of which one call of a variable-length kernel attends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.peers.sequences import Sequences
from sparsemoc.spec.sample_plan import SamplePlan

#: Queries q_lo ... q_hi - 1, counted from the first one, against keys k_lo ... k_hi - 1, and whether causal.
Piece = tuple[int, int, int, int, bool]


@dataclass(frozen=True, eq=False)
class Family:
    """Rectangles whose queries follow each other without a gap, and whose keys do: slices of the arrays."""

    rows: slice
    keys: slice
    sequences: Sequences


def families(plan: SamplePlan, device: str) -> list[Family]:
    """Return the anchored pairs of a plan without a token window; its dense queries are among them."""
    chains: list[list[Piece]] = []
    open_at: dict[tuple[int, int, bool], list[Piece]] = {}
    for piece in sorted(_pieces(plan)):
        chain = open_at.pop((piece[0], piece[2], piece[4]), None)
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(piece)
        open_at[piece[1], piece[3], piece[4]] = chain
    return [_family(chain, device) for chain in chains]


def _family(chain: list[Piece], device: str) -> Family:
    import torch

    def starts(lo: int, hi: int) -> Any:
        first = chain[0][lo]
        edges = [piece[lo] - first for piece in chain] + [chain[-1][hi] - first]
        return torch.tensor(edges, dtype=torch.int32, device=device)

    rows, keys = slice(chain[0][0], chain[-1][1]), slice(chain[0][2], chain[-1][3])
    most_q, most_k = (max(piece[side + 1] - piece[side] for piece in chain) for side in (0, 2))
    return Family(rows, keys, Sequences(starts(0, 1), starts(2, 3), most_q, most_k, chain[0][4]))


def _pieces(plan: SamplePlan) -> Iterator[Piece]:
    """Yield every anchored pair once. Under token causality a rectangle is cut into whole ones and a causal square."""
    found, first = plan.anchor_rectangles, plan.q_start
    spans = zip(found.q_lo.tolist(), found.q_hi.tolist(), found.k_lo.tolist(), found.k_hi.tolist(), strict=True)
    for q_lo, q_hi, k_lo, k_hi in spans:
        if not plan.token_causal:
            yield q_lo - first, q_hi - first, k_lo, k_hi, False
            continue
        lo, hi = max(q_lo, k_lo), min(q_hi, k_hi)
        cut = [
            (q_lo, q_hi, k_lo, min(k_hi, q_lo), False),  # keys before every query
            (lo, hi, lo, hi, True),
            (max(lo, k_hi), q_hi, lo, k_hi, False),  # queries behind every key
        ]
        for i, i_end, j, j_end, causal in cut:
            if i < i_end and j < j_end:
                yield i - first, i_end - first, j, j_end, causal
