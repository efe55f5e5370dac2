"""What the attention kernels pass around, by name. Arrays unless said otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from sparsemoc.backends.numba.intrinsics import borrowed


class Sample(NamedTuple):
    """The plan of one sample: see `SamplePlan`; `q_lo` ... `banded` are its anchor rectangles."""

    q_lo: Any
    q_hi: Any
    k_lo: Any
    k_hi: Any
    banded: Any
    anchor_ptr: Any
    anchor_lo: Any
    anchor_hi: Any
    run_of: Any  # (queries,) run of each query row, -1 for a padded one
    starts: Any  # (chunks + 1,) chunk bounds
    stops: Any  # (chunks,) ends of valid keys
    reach: int
    token_causal: bool
    splits_chunks: bool
    q_start: int


class Panels(NamedTuple):
    """The transposed keys, or values, of one head."""

    address: int
    depth: int  # padded head_dim
    groups: Any  # (chunks + 1,) first group of lanes of each chunk
    product: int  # address of the row product


class Block(NamedTuple):
    """A block of queries: its rows `ids` count from `first`, a row of the query axis."""

    sample: Sample
    first: int


class State(NamedTuple):
    """The online softmax of a block's queries, in powers of two."""

    top: Any
    total: Any
    mixed: Any  # (rows, padded v_head_dim)


class Strips(NamedTuple):
    """A worker's buffers for one strip of the forward."""

    queries: Any
    logits: Any
    parts: Any
    fade: Any
    sums: Any
    key_product: int


class Tile(NamedTuple):
    """Buffers of a tile of the backward: several strips under each other."""

    queries: Any
    grads: Any
    weights: Any
    slopes: Any
    parts: Any


class Grads(NamedTuple):
    """What a tile of the backward adds to, of one head: (tokens, padded head_dim), one writer at a time."""

    dq: Any
    dk: Any
    dv: Any


@njit(nogil=True)
def borrowed_sample(s):  # type: ignore[no-untyped-def]
    """Return a sample whose arrays own nothing, see `intrinsics.borrowed`."""
    return Sample(
        borrowed(s.q_lo), borrowed(s.q_hi), borrowed(s.k_lo), borrowed(s.k_hi), borrowed(s.banded),
        borrowed(s.anchor_ptr), borrowed(s.anchor_lo), borrowed(s.anchor_hi), borrowed(s.run_of), borrowed(s.starts),
        borrowed(s.stops), s.reach, s.token_causal, s.splits_chunks, s.q_start,
    )  # fmt: skip


#: Which pairs of a tile count: all (but for token causality); those within reach; keys that are no anchor.
EVERY, BAND, NO_ANCHOR = 0, 1, 2
