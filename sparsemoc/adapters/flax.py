"""Mixture of Contexts as the attention_fn of flax: nnx.MultiHeadAttention and linen.MultiHeadDotProductAttention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from sparsemoc.api import attention
from sparsemoc.backends import Backend, Options
from sparsemoc.spec.errors import ShapeError, SpecError, UnsupportedError, describe
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream

Array = Any


def flax_attention_fn(
    spec: RoutingSpec,
    stream: Stream | None = None,
    *,
    key_lengths: Array | None = None,
    training: bool = False,
    seed: Any = None,
    backend: str | Backend = "auto",
    config: Any = None,
    options: Options | None = None,
    deterministic: bool | None = None,
) -> Callable[..., Array]:
    """Return an `attention_fn` for flax's attention modules.

    What a module asks of it and cannot be done is refused, never ignored. The spec decides what is causal.

    Args:
        spec: the routing spec.
        stream: the tokens, where the spec has no stream; with neither, the keys are one video segment.
        key_lengths: int (batch, segments), as for `sparsemoc.attention`: it takes the place of a padding mask.
        training: whether the spec's route dropout is applied. A module's own dropout_rate is another thing, and must
            be 0: modules tell nothing of training then.
        seed: of route dropout: an int, a 0-d integer array, or a function without arguments that gives one, called
            in each call of the module: `lambda: jax.random.bits(rngs.dropout())`.
        backend, config, options, deterministic: as for `sparsemoc.attention`.

    Returns:
        attend(query, key, value, bias=None, mask=None, ...) -> out, with flax's arguments. Arrays are
        (..., tokens, heads, head_dim), any number of batch axes. They are computed in `dtype`, by default in the one
        that they promote to; products are those of `options.precision`, whatever `precision` says.

    Raises:
        SpecError: spec is no RoutingSpec. From the function: is_causal=True against the spec.
        ShapeError: from the function: is_causal=True with unlike numbers of queries and keys.
        UnsupportedError: from the function: a bias, a mask, dropout of attention weights, weights to be sown.

    Example:
        >>> import sparsemoc as moc
        >>> from flax import nnx
        >>> from sparsemoc.jax import flax_attention_fn
        >>> attend = flax_attention_fn(moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=2, anchors=("chunk",)))
        >>> layer = nnx.MultiHeadAttention(4, 64, attention_fn=attend, decode=False, rngs=nnx.Rngs(0))
    """
    if not isinstance(spec, RoutingSpec):
        raise SpecError(
            f"flax_attention_fn: spec must be a RoutingSpec, got {describe(spec)}. Hint: sparsemoc.load_spec(path)."
        )
    common = {"backend": backend, "config": config, "options": options, "deterministic": deterministic}

    # The names are flax's: linen drops the arguments that a function does not name.
    def attend(
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None = None,
        mask: Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        is_causal: bool = False,
        qk_attn_weights_einsum: Any = None,
        attn_weights_value_einsum: Any = None,
    ) -> Array:
        asked = {"bias": bias, "mask": mask, "module": module}
        products = {
            "qk_attn_weights_einsum": qk_attn_weights_einsum,
            "attn_weights_value_einsum": attn_weights_value_einsum,
        }
        _refuse(asked | products, 0.0 if deterministic else dropout_rate)
        if is_causal:
            _check_causal(spec, query.shape[-3], key.shape[-3])
        kind = jnp.result_type(query, key, value) if dtype is None else dtype
        q, k, v = (array.astype(kind).reshape(-1, *array.shape[-3:]) for array in (query, key, value))
        number = seed() if callable(seed) else seed
        given = {"key_lengths": key_lengths, "training": training, "seed": number}
        out = attention(q, k, v, spec, stream=stream, **given, **common)
        return out.reshape(*query.shape[:-1], value.shape[-1])

    return attend


#: Argument of flax -> the hint of its refusal.
_HINTS = {
    "bias": "routing has no place for one",
    "mask": "padding is key_lengths=, what is causal is the spec's",
    "module": "sow_weights=False; there is no matrix of weights to sow",
    "qk_attn_weights_einsum": "leave it out of the module",
    "attn_weights_value_einsum": "leave it out of the module",
}


def _refuse(asked: dict[str, Any], dropout_rate: float) -> None:
    """Raise for an argument that cannot be honoured."""
    for argument, value in asked.items():
        if value is not None:
            raise UnsupportedError(
                f"flax_attention_fn: {argument} must be None, got {type(value).__name__}. Hint: {_HINTS[argument]}."
            )
    if dropout_rate:
        raise UnsupportedError(
            f"flax_attention_fn: dropout_rate must be 0, got {describe(dropout_rate)}: weights are never dropped. "
            "Hint: RouteDropout in the spec, with training=True and seed=."
        )


def _check_causal(spec: RoutingSpec, queries: int, keys: int) -> None:
    """Check that a spec does what is_causal=True asks for."""
    if spec.causal != "token":
        raise SpecError(
            f'flax_attention_fn: is_causal=True asks for a spec with causal="token", got causal="{spec.causal}". '
            "Hint: leave is_causal out; the spec decides."
        )
    if queries != keys:
        raise ShapeError(
            "flax_attention_fn: is_causal=True asks for as many queries as keys, for flax counts both from the start, "
            f"got {queries} and {keys}. Hint: leave is_causal out: the queries are then the last of the stream."
        )
