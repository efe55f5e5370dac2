"""MoBA's composition as a peer: it computes what Mixture of Contexts does, by the means that torch has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench.inputs import tensor
from bench.peers.call import Call
from bench.peers.composition import Composition
from bench.peers.peer import Outputs, Peer, Unavailable
from bench.peers.router import Router


def peers(call: Call) -> Iterator[Peer]:
    """Yield the composition, in every mode."""
    table = 0 if call.mode == "attend" else call.problem.heads * call.problem.queries * call.plan.chunks
    attention = 0 if call.mode == "route" else call.flops(call.pairs)
    yield Peer(
        name="moba var-len",
        computes="moc",
        flops=attention + (call.routing_flops() if table else 0),
        share=0.2,
        bytes=max(4 * table, 0 if call.mode == "route" else _gathered(call)),
        note="gathers queries by chunk and merges in torch; " + _kernel(call.device),
        prepare=partial(_prepare, call),
    )


def _kernel(device: str) -> str:
    return "one variable-length kernel" if device == "cuda" else "one call of torch's flash attention for each sequence"


def _gathered(call: Call) -> int:
    """Return the bytes of queries, outputs and, for a backward, their gradients, once for each route."""
    sizes = {"float32": 4}.get(call.inputs.dtype, 2) * call.problem.head_dim
    routes = call.problem.heads * call.problem.queries * call.plan.slots
    # Weighted outputs are in float32; a backward gathers out and d_out besides, and gives dq, once more in float32.
    return routes * (2 * sizes + 4 * call.problem.head_dim + (4 * sizes if call.backward else 0))


def _prepare(call: Call) -> Callable[[], Outputs]:
    if reason := refused(call):
        raise Unavailable(reason)
    q, k, v, d_out = call.tensors()
    router = Router(call.plan, call.problem.heads, call.device)
    if call.mode == "route":
        return lambda: {"selected": router(q, k)[None]}
    composition = Composition(call.plan, call.problem.kv_heads, call.device)
    if call.mode == "attend":
        assert call.layout is not None, "the layout is given in this mode"
        given = tensor(call.layout.selected)[0].long()

    def forward() -> Outputs:
        selected = given if call.mode == "attend" else router(q, k)
        out, lse = composition.forward(q, k, v, selected)
        return {"out": out, "lse": lse} | ({} if call.mode == "attend" else {"selected": selected[None]})

    def gradients() -> Outputs:
        selected = router(q, k)
        names = ("out", "dq", "dk", "dv")
        found = dict(zip(names, composition.gradients(q, k, v, selected, d_out), strict=True))
        return found | {"selected": selected[None]}

    return gradients if call.backward else forward


def refused(call: Call) -> str | None:
    """Return why the composition cannot compute a problem."""
    if call.spec.unit != "token" or call.spec.dropout is not None:
        return "lets each query choose for itself, without blocks of queries and without route dropout"
    if call.plan.samples[0].splits_chunks:
        return "attends to whole chunks: here a window or another anchor cuts chunks that may be chosen"
    if call.mode == "route":
        return None
    if call.problem.head_dim != call.problem.v_head_dim:
        return f"torch's flash attention takes one head_dim, not {call.problem.head_dim} and {call.problem.v_head_dim}"
    if call.device == "cuda" and call.inputs.dtype == "float32":
        return "torch's variable-length flash attention takes float16 and bfloat16"
    return None
