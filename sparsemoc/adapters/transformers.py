"""Mixture of Contexts as an attention implementation of Hugging Face transformers: `register`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from sparsemoc.adapters.seeds import route_seed
from sparsemoc.adapters.transformers_masks import CAUSAL, Masks, check_causal
from sparsemoc.api import attention
from sparsemoc.backends import Backend, Options
from sparsemoc.spec.errors import SpecError, UnsupportedError, describe, one_of
from sparsemoc.spec.routing import RoutingSpec

Tensor = Any
#: Arguments that ask for something else than this attention: only None, False or an absence is honoured.
_REFUSED = (
    "softcap",
    "s_aux",
    "sinks",
    "position_bias",
    "head_mask",
    "cache",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "indices",
    "block_indices",
    "output_attentions",
)
#: Parts of names that transformers reads in a way of its own.
_RESERVED = ("eager", "sdpa", "flash", "flex", "paged")


def register(
    spec: RoutingSpec,
    name: str = "sparsemoc",
    *,
    backend: str | Backend = "auto",
    config: Any = None,
    options: Options | None = None,
    deterministic: bool | None = None,
) -> str:
    """Register a spec as an attention implementation, for `model.set_attn_implementation(name)`.

    The tokens are the spec's stream; without one, all keys so far are one video segment. Where a module is causal, as
    those of language models are, the spec must be too: causal="token". With a KV cache the queries are the last of
    the keys. For a new token to see the chunks that a full forward pass would cut, chunk boundaries must not depend on
    the length: the spec needs Chunks(tail="short"), and unit="token"; others are refused once a cache holds tokens.

    Padding stands at the end of a segment, and becomes `key_lengths`; outputs of padded tokens are 0. Where a model is
    given an attention mask, a read of it once per forward pass (on a GPU a synchronisation, with padding two) tells
    whether that is so. Under torch.compile an assertion on the device tells, and nothing is read; the batch may vary,
    while each number of tokens is a graph of its own, so that decoding is best left uncompiled.

    Route dropout is applied in training mode, seeded by torch's generator. Registering a name again replaces its
    spec, in models that use it too: so a training schedule changes it.

    Args:
        spec: the routing spec.
        name: of the implementation.
        backend, config, options, deterministic: as for `sparsemoc.attention`.

    Returns:
        name.

    Raises:
        SpecError: spec is no RoutingSpec; a name that transformers uses or reads in a way of its own. From the model:
            a spec that is causal where the module is not, or the other way round.
        UnsupportedError: from the model: padding before tokens, a mask that hides more than padding and the future,
            a static cache, attention dropout, cross-attention, and arguments such as softcap that ask for more.

    Example:
        >>> import sparsemoc as moc, transformers
        >>> chunks = moc.Chunks(size=64, tail="short")
        >>> spec = moc.RoutingSpec(chunks=chunks, top_k=2, anchors=("chunk", moc.first(4)), causal="token")
        >>> moc.transformers.register(spec)
        'sparsemoc'
        >>> size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size))
        >>> model.set_attn_implementation("sparsemoc")
    """
    if not isinstance(spec, RoutingSpec):
        raise SpecError(f"register: spec must be a RoutingSpec, got {describe(spec)}. Hint: sparsemoc.load_spec(path).")
    how = {"backend": backend, "config": config, "options": options, "deterministic": deterministic}
    _check_name(name)
    AttentionInterface.register(name, _Attention(name, spec, how))
    AttentionMaskInterface.register(name, Masks(name, spec))
    return name


@dataclass(frozen=True)
class _Attention:
    """The attention function: (batch, heads, tokens, head_dim) in, (batch, tokens, heads, head_dim) out."""

    name: str
    spec: RoutingSpec
    how: dict[str, Any]

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if is_causal is None:
            of_model = getattr(getattr(module, "config", None), "is_causal", True)
            is_causal = of_model and getattr(module, "is_causal", True)
        check_causal(self.name, self.spec, is_causal)
        self._check_tokens(query.shape[2], key.shape[2], is_causal, sliding_window)
        self._refuse(dropout, others)
        out = attention(
            query,
            key,
            value,
            self.spec,
            key_lengths=self._key_lengths(attention_mask),
            scale=scaling,
            axes="bhsd",
            training=module.training,
            seed=route_seed(self.spec, module.training, query.device),
            **self.how,
        )
        return out.transpose(1, 2).contiguous(), None

    def _check_tokens(self, queries: int, keys: int, is_causal: bool, sliding_window: int | None) -> None:
        name, spec = self.name, self.spec
        if sliding_window is not None and keys > sliding_window:
            raise UnsupportedError(
                f"{name}: a sliding window must hold all keys, got {keys} keys and sliding_window={sliding_window}. "
                "Hint: config.sliding_window = None; the spec's anchors may hold window(n)."
            )
        if queries == keys:
            return
        if not is_causal:
            raise UnsupportedError(
                f"{name}: where attention is not causal, queries and keys must be the same tokens, got {queries} and "
                f"{keys}: cross-attention. Hint: set it for the parts of a model that have self-attention alone."
            )
        moving = spec.stream is None and spec.chunks.size is not None and spec.chunks.tail != "short"
        if moving or spec.unit != "token":
            raise SpecError(
                f'{name}: with a KV cache the spec must have Chunks(tail="short") and unit="token", so that a new '
                f"token changes no earlier routes, got tail={spec.chunks.tail!r} and unit={spec.unit!r}. "
                f"Hint: {CAUSAL}."
            )

    def _refuse(self, dropout: float, others: dict[str, Any]) -> None:
        if dropout:
            raise UnsupportedError(
                f"{self.name}: attention dropout must be 0, got {dropout}: single weights are not dropped. "
                "Hint: config.attention_dropout = 0.0; RoutingSpec(dropout=RouteDropout(off=0.5)) drops routes."
            )
        for argument in _REFUSED:
            value = others.get(argument)
            if value is not None and value is not False:
                raise UnsupportedError(
                    f"{self.name}: {argument} must be left out, got {type(value).__name__}: it asks for what routing "
                    'does not compute. Hint: model.set_attn_implementation("eager").'
                )

    def _key_lengths(self, mask: Tensor | None) -> Tensor | None:
        """Return what `Masks` made of a padding mask."""
        if mask is not None and (mask.ndim != 2 or mask.dtype is not torch.int32):
            raise UnsupportedError(
                f"{self.name}: the attention mask must be a padding mask, (batch, tokens), got {mask.dtype} "
                f"{tuple(mask.shape)}. What a query sees is the spec's to say. Hint: leave it out."
            )
        return mask


def _check_name(name: Any) -> None:
    taken = isinstance(name, str) and not isinstance(AttentionInterface().get(name), _Attention | None)
    if taken or not isinstance(name, str) or not name.isidentifier() or any(word in name for word in _RESERVED):
        raise SpecError(
            f"register: name must be a word of its own, without {one_of(_RESERVED)}, by which transformers knows "
            f'other implementations, got {describe(name)}. Hint: name="sparsemoc".'
        )
