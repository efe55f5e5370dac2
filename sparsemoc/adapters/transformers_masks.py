"""What transformers' masks become: key lengths where there is padding, an error where they hide more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from sparsemoc.spec.errors import ShapeError, SpecError, UnsupportedError
from sparsemoc.spec.routing import RoutingSpec

Tensor = Any
#: A spec for language models, in hints.
CAUSAL = 'RoutingSpec(chunks=Chunks(size=256, tail="short"), anchors=("chunk", first(4)), causal="token")'


def check_causal(name: str, spec: RoutingSpec, causal: bool) -> None:
    """Raise unless the spec is causal by tokens where the model is, and only there."""
    if causal and spec.causal != "token":
        raise SpecError(
            f'{name}: the model is causal, so the spec must have causal="token", got causal="{spec.causal}". '
            f"Hint: {CAUSAL}."
        )
    if not causal and spec.causal == "token":
        raise SpecError(
            f'{name}: the model is not causal, so the spec must have causal="none" or "chunk", got causal="token". '
            'Hint: dataclasses.replace(spec, causal="none").'
        )


@dataclass(frozen=True)
class Masks:
    """The mask function: key_lengths, int32 (batch, segments), or None where every token is valid."""

    name: str
    spec: RoutingSpec

    def __call__(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        q_offset: int | Tensor = 0,
        kv_offset: int = 0,
        mask_function: Callable[..., Tensor] = causal_mask_function,
        attention_mask: Tensor | None = None,
        use_vmap: bool = False,
        device: Any = "cpu",
        **_: Any,
    ) -> Tensor | None:
        """Return key_lengths or None, of what transformers tells every mask function."""
        if isinstance(q_offset, torch.Tensor) or kv_offset != 0 or q_offset + q_length != kv_length:
            where = "on the device" if isinstance(q_offset, torch.Tensor) else str(q_offset)
            raise UnsupportedError(
                f"{self.name}: the queries must be the last of all tokens so far, got {q_length} queries from position "
                f"{where}, and {kv_length} keys from position {kv_offset}: a static or sliding cache, or "
                'cross-attention. Hint: cache_implementation="dynamic", config.sliding_window = None.'
            )
        if mask_function in (causal_mask_function, bidirectional_mask_function):
            check_causal(self.name, self.spec, mask_function is causal_mask_function)
        else:
            self._check_visible(mask_function, use_vmap, batch_size, torch.arange(q_offset, kv_length, device=device))
        return None if attention_mask is None else self._key_lengths(attention_mask, kv_length)

    def _check_visible(self, mask_function: Callable[..., Tensor], custom: bool, batch: int, rows: Tensor) -> None:
        """Raise where the mask hides, or shows, other tokens than causality does.

        Windows, chunks and packed samples hide the first key from the last queries, or the last key from the first;
        overlays show a query the next key. So a few keys for each query tell all of them. Functions of the user's
        own may hide anything, and are refused.
        """
        rows, rule = rows[None], "all earlier keys, and no later one" if self.spec.causal == "token" else "all keys"
        message = (
            f"{self.name}: with this spec the model's mask must show each query {rule}, got a sliding window, local "
            "chunks, packed samples, a mask of blocks, or a function of the user's own. Hint: pass packed samples as "
            "rows with padding at the end; config.sliding_window = None."
        )
        if custom:
            raise UnsupportedError(message)
        sample = torch.arange(batch, device=rows.device)[:, None]

        def sees(queries: Tensor, keys: Tensor) -> Tensor:
            return mask_function(sample, torch.zeros_like(sample), queries, keys)

        shown = sees(rows, torch.zeros_like(rows)).all()
        if self.spec.causal == "token":
            fits = shown & ~sees(rows[:, :-1], rows[:, 1:]).any()
        else:
            fits = shown & sees(rows, rows[:, -1:].expand_as(rows)).all()
        _require(fits, message)

    def _key_lengths(self, mask: Tensor, keys: int) -> Tensor | None:
        """Return the valid tokens of each segment, of a mask (batch, tokens) that is True where tokens are valid."""
        bounds = (0, keys) if self.spec.stream is None else self.spec.stream.bounds
        if mask.shape[1] != keys or bounds[-1] != keys:
            raise ShapeError(
                f"{self.name}: the attention mask must cover the keys, and the spec's stream too where it has one, got "
                f"{keys} keys, a mask of {mask.shape[1]} and {bounds[-1]} tokens of the stream."
            )
        if not torch.compiler.is_compiling() and mask.all():
            return None  # as `generate` has it, which always gives a mask
        starts = mask[:, 1:] & ~mask[:, :-1]  # a token behind padding
        inside = torch.ones_like(starts[0])
        for bound in bounds[1:-1]:
            inside[bound - 1] = False
        _require(
            ~(starts & inside).any(),
            f"{self.name}: padding must stand at the end of each segment, got an attention mask with tokens behind "
            'padding. Hint: tokenizer.padding_side = "right"; generate from prompts of unlike length one by one.',
        )
        return torch.stack([mask[:, first:end].sum(1) for first, end in pairwise(bounds)], dim=1).to(torch.int32)


def _require(fits: Tensor, message: str) -> None:
    """Raise unless a 0-d bool tensor is True: read here, or, where torch traces, by the device when it comes to it."""
    if torch.compiler.is_compiling():
        torch._assert_async(fits, message)
    elif not fits:
        raise UnsupportedError(message)
