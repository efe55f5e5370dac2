"""FlexAttention under the mask of a layout, compiled: the same pairs, with the routes given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import sparsemoc as moc
from bench.peers.call import Call
from bench.peers.peer import Outputs, Peer, Unavailable
from bench.peers.torch_call import Attention, heads_first, torch_call

#: Queries and keys of a block, and most blocks of all heads: their lists take some 40 bytes for each.
BLOCK, MOST_BLOCKS, BYTES_PER_BLOCK = 128, 2**24, 40


def compiled(layout: moc.Layout) -> Attention:
    """Return compiled FlexAttention under the mask of a layout, with heads first; it compiles when it is first called.

    Its block lists hold every block that a query of it chose; where each query chooses for itself that is nearly all.
    """
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    mask = layout.to_block_mask(BLOCK)
    # Every layout is a graph of its own. Beyond a few graphs torch would run eagerly: so the old ones go first, and
    # what it cannot compile whole is an error.
    torch.compiler.reset()
    attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda q, k, v: attend(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def peers(call: Call) -> Iterator[Peer]:
    """Yield FlexAttention where the layout is given."""
    if call.mode == "attend":
        yield Peer(
            name="torch flex",
            computes="moc",
            flops=call.flops(call.dense_pairs),
            share=0.3,
            bytes=BYTES_PER_BLOCK * _blocks(call),
            note=f"its mask is made and compiled before; blocks of {BLOCK} x {BLOCK}, "
            "nearly all where each query chooses for itself",
            prepare=partial(_prepare, call),
        )


def _blocks(call: Call) -> int:
    return call.problem.heads * -(-call.problem.queries // BLOCK) * -(-call.problem.tokens // BLOCK)


def _prepare(call: Call) -> Callable[[], Outputs]:
    assert call.layout is not None, "the layout is given in this mode"
    blocks = _blocks(call)
    if blocks > MOST_BLOCKS:
        raise Unavailable(f"its mask has {blocks:,} blocks over all heads, more than {MOST_BLOCKS:,}")
    arrays = [heads_first(x).contiguous() for x in call.tensors()]
    forward = torch_call(compiled(call.layout), arrays, backward=False, turn=heads_first)
    forward()  # compiles
    return forward
