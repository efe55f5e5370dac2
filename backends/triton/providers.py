"""Anchor engines: our own kernel, or a dense attention that another library provides for large rectangles.

A provider attends whole rectangles of rows and keys, unmasked, and its results stand beside those of our kernel, which
does everything else: the merge cannot tell them apart. `options.anchors` names the engine: "own"; a provider, which is
obeyed or refused with a reason; or "auto", which is "own" until a measurement says otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Protocol

from sparsemoc.backends.planning.geometry import Geometry
from sparsemoc.backends.planning.query_tiles import Provided
from sparsemoc.backends.protocol import Problem
from sparsemoc.backends.triton.workspace import LOG2_E, Partials
from sparsemoc.spec.errors import UnsupportedError


class Provider(Protocol):
    """A dense attention that returns its lse.

    Attributes:
        name: what `options.anchors` calls it.
        least_pairs: rows times keys from which on a rectangle is worth a call.
    """

    name: str
    least_pairs: int

    def refuses(self, problem: Problem) -> str | None:
        """Return why it cannot attend the problem's rectangles, or None."""

    def attend(self, q: Any, k: Any, v: Any, scale: float) -> tuple[Any, Any]:
        """Return out (batch, heads, rows, v_head_dim) and lse (batch, heads, rows), natural log, of full attention.

        Args:
            q, k, v: (batch, heads or kv_heads, rows or keys, head_dim), any strides.
            scale: factor on the logits.
        """


class _Dense:
    """What the dense kernels for GPUs share: 16-bit dtypes and one head_dim, a multiple of 8."""

    least_pairs = 2**20

    def refuses(self, problem: Problem) -> str | None:
        """Return why it cannot attend the problem's rectangles, or None."""
        if problem.device != "cuda":
            return f"runs on cuda, not {problem.device}"
        if problem.dtype not in ("float16", "bfloat16"):
            return f"takes float16 and bfloat16, not {problem.dtype}"
        if problem.head_dim != problem.v_head_dim:
            return _unequal(problem)
        if problem.head_dim % 8:
            return f"takes multiples of 8 as head_dim, not {problem.head_dim}"
        if problem.deterministic:
            return "splits keys by the size of the batch, which deterministic results may not depend on"
        return None


class Sdpa(_Dense):
    """PyTorch's flash attention, called below `scaled_dot_product_attention`, which does not return the lse."""

    name = "sdpa"

    def refuses(self, problem: Problem) -> str | None:
        """Return why it cannot attend the problem's rectangles, or None; on the CPU it takes every dtype."""
        if problem.device == "cpu":
            return None if problem.head_dim == problem.v_head_dim else _unequal(problem)
        return super().refuses(problem)

    def attend(self, q: Any, k: Any, v: Any, scale: float) -> tuple[Any, Any]:
        """Return out and lse of full attention; see `Provider`."""
        if q.device.type == "cpu":
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            out, lse = _torch().ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
            return out, lse
        q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
        out, lse = _torch().ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
        return out, lse


class Cudnn(_Dense):
    """cuDNN's attention, by the operator of torch that returns its lse."""

    name = "cudnn"

    def refuses(self, problem: Problem) -> str | None:
        """Return why it cannot attend the problem's rectangles, or None."""
        if reason := super().refuses(problem):
            return reason
        if not _torch().backends.cudnn.is_available():
            return "needs a torch with cuDNN"
        if problem.group > 1:
            return f"takes as many key heads as query heads, not {problem.kv_heads} and {problem.heads}"
        return None

    def attend(self, q: Any, k: Any, v: Any, scale: float) -> tuple[Any, Any]:
        """Return out and lse of full attention; see `Provider`."""
        q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
        found = _torch().ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)
        return found[0], found[1].reshape(q.shape[:3])


class FlashAttention(_Dense):
    """The packages of FlashAttention: that for Hopper GPUs where it is installed, else that for all."""

    name = "flash_attn"

    def refuses(self, problem: Problem) -> str | None:
        """Return why it cannot attend the problem's rectangles, or None."""
        return super().refuses(problem) or (None if self._package() else "needs the package flash-attn")

    def attend(self, q: Any, k: Any, v: Any, scale: float) -> tuple[Any, Any]:
        """Return out and lse of full attention; see `Provider`. The package takes tokens before heads."""
        module = importlib.import_module(str(self._package()))
        queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
        found = module.flash_attn_func(queries, keys, values, softmax_scale=scale, return_attn_probs=True)
        return found[0].transpose(1, 2), found[1]

    def _package(self) -> str | None:
        names = ("flash_attn_interface", "flash_attn")
        return next((name for name in names if importlib.util.find_spec(name) is not None), None)


#: By name; "own" is not among them.
PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (Sdpa(), Cudnn(), FlashAttention())}


def refuses(problem: Problem, geometry: Geometry, padded: bool = False) -> str | None:
    """Return why the engine that `problem.options.anchors` names cannot run, or None.

    Args:
        problem: the call.
        geometry: the tables of its plan.
        padded: whether the call has key_lengths: only the call itself knows.
    """
    name = problem.options.anchors
    if name in ("auto", "own"):
        return None
    if name not in PROVIDERS:
        return f'has the anchor engines own, {", ".join(PROVIDERS)}, not "{name}"'
    if padded:
        return f'the anchor engine "{name}" takes no key_lengths'
    if not len(geometry.rectangles.q_lo):
        return f'the anchor engine "{name}" has nothing to do: the spec has no anchors'
    reason = PROVIDERS[name].refuses(problem)
    return None if reason is None else f'the anchor engine "{name}" {reason}'


def chosen(problem: Problem, geometry: Geometry, padded: bool) -> Provider | None:
    """Return the provider that a call uses, None for our own kernel alone.

    Raises:
        UnsupportedError: the named provider cannot run.
    """
    reason = refuses(problem, geometry, padded)
    if reason is not None:
        raise UnsupportedError(f"triton: {reason}.")
    return PROVIDERS.get(problem.options.anchors)


def attend_rectangle(
    provider: Provider, one: Provided, q: Any, k: Any, v: Any, scale: float, partials: Partials
) -> None:
    """Attend one rectangle and put its results where the merge looks for them.

    Args:
        provider: who attends.
        one: the rectangle.
        q, k, v: (batch, tokens, heads or kv_heads, head_dim), any strides.
        scale: factor on the logits, log2(e) included.
        partials: of the anchors.
    """
    queries = q[:, one.q_lo : one.q_hi].transpose(1, 2)
    keys, values = (x[:, one.k_lo : one.k_hi].transpose(1, 2) for x in (k, v))
    out, lse = provider.attend(queries, keys, values, scale / LOG2_E)
    places = slice(one.shift + one.q_lo, one.shift + one.q_hi)
    partials.out[:, :, places] = out
    partials.lse[:, :, places] = lse * LOG2_E


def _torch() -> Any:
    import torch

    return torch


def _unequal(problem: Problem) -> str:
    return f"takes one head_dim for keys and values, not {problem.head_dim} and {problem.v_head_dim}"
