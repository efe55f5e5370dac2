"""Dense attention by torch's scaled_dot_product_attention, each of its kernels by itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from bench.peers.call import Call
from bench.peers.peer import Outputs, Peer, Unavailable, on_cuda
from bench.peers.torch_call import Attention, heads_first, torch_call

#: Kernels by name; those of the second table are for CUDA devices alone.
ANYWHERE = {"math": "MATH", "flash": "FLASH_ATTENTION"}
ON_CUDA = {"mem-efficient": "EFFICIENT_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}
KERNELS = ANYWHERE | ON_CUDA
#: Tables of (heads, queries, keys) in float32 that the kernel "math" holds at once, forward and with a backward.
TABLES, BACKWARD_TABLES = 2, 4
#: Queries of the trial that tells whether a kernel takes such arrays at all, and most keys before them.
TRIAL, TRIAL_BEFORE = 16, 8


def attention(kernel: str | None, *, causal: bool = False, mask: Any = None) -> Attention:
    """Return torch's attention over arrays with heads first; key heads may be fewer.

    Args:
        kernel: a name of `KERNELS`, or None for the one that torch chooses.
        causal: whether query i sees the keys 0 ... i; or the last query the last key, where keys are more.
        mask: bool (queries, keys), or None.
    """
    import torch
    from torch.nn.attention import SDPBackend, bias, sdpa_kernel

    def attend(q: Any, k: Any, v: Any) -> Any:
        grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        lower_right = bias.causal_lower_right(q.shape[2], k.shape[2]) if causal and q.shape[2] != k.shape[2] else None
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask if lower_right is None else lower_right,
            is_causal=causal and lower_right is None, **grouped,
        )  # fmt: skip

    if kernel is None:
        return attend
    backend = getattr(SDPBackend, KERNELS[kernel])

    def attend_by_kernel(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(backend):
            return attend(q, k, v)

    return attend_by_kernel


def peers(call: Call) -> Iterator[Peer]:
    """Yield every kernel of torch's attention."""
    for name in KERNELS:
        every = name == "math" or _masked(call, name)
        size = call.problem.heads * call.problem.queries * call.problem.tokens
        yield Peer(
            name=f"torch sdpa {name}",
            computes="dense",
            flops=call.flops(size if every else call.dense_pairs),
            share=0.3 if name == "math" else 0.5,
            bytes=_bytes(call, name),
            note="all logits in memory" if name == "math" else "",
            prepare=partial(_prepare, call, name),
        )


def _masked(call: Call, name: str) -> bool:
    """Return whether causality has to be written as a mask: only CUDA's flash kernel aligns it to the last key."""
    ragged = call.problem.token_causal and call.problem.queries != call.problem.tokens
    return ragged and not (name == "flash" and call.device == "cuda")


def _bytes(call: Call, name: str) -> int:
    queries, keys = call.problem.queries, call.problem.tokens
    # A bool mask becomes one of numbers in the call.
    mask = 5 * queries * keys if _masked(call, name) else 0
    tables = (BACKWARD_TABLES if call.backward else TABLES) if name == "math" else 0
    return mask + 4 * tables * call.problem.heads * queries * keys


def _prepare(call: Call, name: str) -> Callable[[], Outputs]:
    if name in ON_CUDA:
        on_cuda(call.device)
    arrays = [heads_first(x).contiguous() for x in call.tensors()]
    _try(call, name, arrays)
    attend = _attention(call, name, call.problem.queries, call.problem.tokens)
    return torch_call(attend, arrays, backward=call.backward, turn=heads_first)


def _attention(call: Call, name: str, queries: int, keys: int) -> Attention:
    import torch

    if _masked(call, name):
        seen = torch.ones(queries, keys, dtype=torch.bool, device=call.device).tril(keys - queries)
        return attention(name, mask=seen)
    return attention(name, causal=call.problem.token_causal)


def _try(call: Call, name: str, arrays: Sequence[Any]) -> None:
    """Run the first few tokens: what a kernel refuses, it refuses at any length, and torch warns why.

    Raises:
        Unavailable: with that reason.
    """
    queries = min(TRIAL, call.problem.queries)
    keys = queries + min(TRIAL_BEFORE, call.problem.tokens - call.problem.queries)
    attend = _attention(call, name, queries, keys)
    few = [x[:, :, :tokens] for x, tokens in zip(arrays, (queries, keys, keys, queries), strict=True)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            torch_call(attend, few, backward=call.backward)()
        except RuntimeError as error:
            # The first line of each pair of warnings only announces the second.
            reasons = [str(one.message).partition(" (Triggered")[0].strip() for one in told]
            reasons = [text for text in reasons if not text.endswith("because:")]
            raise Unavailable(reasons[0] if reasons else str(error).splitlines()[0]) from None
