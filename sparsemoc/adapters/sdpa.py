"""Mixture of Contexts behind the signature of torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparsemoc.adapters.seeds import route_seed
from sparsemoc.api import attention
from sparsemoc.backends import Backend, Options
from sparsemoc.spec.errors import ShapeError, SpecError, UnsupportedError, describe
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream

Tensor = Any


def sdpa_like(
    spec: RoutingSpec,
    *,
    stream: Stream | None = None,
    backend: str | Backend = "auto",
    config: Any = None,
    options: Options | None = None,
    deterministic: bool | None = None,
) -> Callable[..., Tensor]:
    """Return a function to be called as torch.nn.functional.scaled_dot_product_attention is.

    For models that take an attention function. What is asked of it and cannot be done is refused, never ignored.
    The spec decides what is causal: is_causal=True asks for a spec with causal="token", and for as many queries as
    keys, since SDPA counts both from the start; without it, queries are the last of the keys' stream.

    Args:
        spec: the routing spec.
        stream: the tokens, where the spec has no stream; with neither, the keys are one video segment.
        backend, config, options, deterministic: as for `sparsemoc.attention`.

    Returns:
        attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, *,
        stream=None, key_lengths=None, training=False, seed=None) -> out. Tensors are (batch, heads, tokens, head_dim),
        or (batch, tokens, head_dim) for one head. `key_lengths`, int (batch, segments), takes the place of a padding
        mask. With training=True route dropout is applied; without a seed, by one from torch's generator.

    Raises:
        SpecError: spec is no RoutingSpec. From the function: is_causal=True against the spec.
        UnsupportedError: from the function: attn_mask, dropout_p > 0.
        ShapeError: from the function: a rank that is neither 3 nor 4, unlike heads without enable_gqa.

    Example:
        >>> import sparsemoc as moc, torch
        >>> attend = moc.torch.sdpa_like(moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=2, anchors=("chunk",)))
        >>> attend(*torch.randn(3, 2, 4, 128, 32)).shape
        torch.Size([2, 4, 128, 32])
    """
    if not isinstance(spec, RoutingSpec):
        raise SpecError(
            f"sdpa_like: spec must be a RoutingSpec, got {describe(spec)}. Hint: sparsemoc.load_spec(path)."
        )
    usual = stream

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        *,
        stream: Stream | None = None,
        key_lengths: Tensor | None = None,
        training: bool = False,
        seed: Any = None,
    ) -> Tensor:
        """Attend each query to its anchors and its routed chunks, see `sdpa_like`."""
        _refuse(attn_mask, dropout_p)
        _check_heads(query, key, value, enable_gqa)
        if is_causal:
            _check_causal(spec, query, key)
        one_head = query.ndim == 3
        q, k, v = (x.unsqueeze(1) if one_head else x for x in (query, key, value))
        out = attention(
            q,
            k,
            v,
            spec,
            stream=usual if stream is None else stream,
            key_lengths=key_lengths,
            scale=scale,
            axes="bhsd",
            training=training,
            seed=route_seed(spec, training, query.device) if seed is None else seed,
            backend=backend,
            config=config,
            options=options,
            deterministic=deterministic,
        )
        return out.squeeze(1) if one_head else out

    return attend


def _refuse(attn_mask: Tensor | None, dropout_p: float) -> None:
    if attn_mask is not None:
        raise UnsupportedError(
            f"sdpa_like: attn_mask must be None, got {_shown(attn_mask)}. What a query sees is the spec's to say. "
            'Hint: for padding key_lengths=; for a causal mask RoutingSpec(causal="token").'
        )
    if dropout_p > 0:
        raise UnsupportedError(
            f"sdpa_like: dropout_p must be 0, got {dropout_p}: single weights are not dropped. "
            "Hint: RoutingSpec(dropout=RouteDropout(off=0.5)) drops routes, with training=True."
        )


def _shown(mask: Any) -> str:
    return f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else describe(mask)


def _check_heads(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    if {query.ndim, key.ndim, value.ndim} not in ({3}, {4}):
        raise ShapeError(
            "sdpa_like: query, key and value must have rank 4 (batch, heads, tokens, head_dim), or 3 for one head "
            f"(batch, tokens, head_dim), got {_shapes(query, key, value)}. Hint: flatten the leading axes."
        )
    if query.ndim == 4 and not enable_gqa and query.shape[1] != key.shape[1]:
        raise ShapeError(
            "sdpa_like: query and key must have as many heads, axis 1, "
            f"got {_shapes(query, key, value)}. Hint: enable_gqa=True."
        )


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors)


def _check_causal(spec: RoutingSpec, query: Tensor, key: Tensor) -> None:
    if spec.causal != "token":
        raise SpecError(
            f'sdpa_like: is_causal=True needs a spec with causal="token", got causal="{spec.causal}". '
            'Hint: dataclasses.replace(spec, causal="token").'
        )
    if query.shape[-2] != key.shape[-2]:
        raise ShapeError(
            f"sdpa_like: with is_causal=True query and key must have as many tokens, got {query.shape[-2]} and "
            f"{key.shape[-2]}. Hint: without it, queries are the last of the keys, and the spec stays causal."
        )
