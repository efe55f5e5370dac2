"""Attention processors of our own, for models whose own ones do not ask diffusers' dispatcher for their backend.

Each projects with the submodules of the layer, so that adapters and quantised layers keep their effect; dense passes go
to the processor that it stands for.
"""

from __future__ import annotations

from typing import Any

import torch

from sparsemoc.spec.errors import UnsupportedError


class Processor:
    """The attention processor of one routed layer; a subclass says in `routed` how its model projects.

    Args:
        layer: `layer.attend(q, k, v, mask)` attends by the spec, with the whole sequence as (batch, tokens, heads,
            head_dim), post-RoPE, and a bool mask (batch, text tokens) or None.
        original: the processor that it stands for, which serves dense passes.
    """

    def __init__(self, layer: Any, original: Any) -> None:
        self.layer = layer
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """Attend. The names are those that the layers of diffusers pass."""
        attend = self.original if self.layer.dense() else self.routed
        return attend(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    def routed(self, attn: Any, video: Any, text: Any, mask: Any, rotary: Any) -> Any:
        """Attend by the spec.

        Args:
            attn: the layer's module, which holds the projections.
            video: (batch, video tokens, channels).
            text: (batch, text tokens, channels), or None.
            mask: the mask as the model passes it.
            rotary: the rotary embedding of the video tokens, or None.
        """
        raise NotImplementedError


class CosmosProcessor(Processor):
    """Cosmos: self-attention over video."""

    def routed(self, attn: Any, video: Any, text: Any, mask: Any, rotary: Any) -> Any:
        """Attend among the video tokens."""
        _refuse(self.layer.name, mask, "no mask over video")
        q, k, v = (_heads(attn, project(video)) for project in (attn.to_q, attn.to_k, attn.to_v))
        q, k = (_turned(x, rotary, use_real_unbind_dim=-2) for x in (attn.norm_q(q), attn.norm_k(k)))
        return _project_out(attn, self.layer.attend(q, k, v))


class CogVideoXProcessor(Processor):
    """CogVideoX: one set of projections for text, then video; rotary embeddings for video alone."""

    def routed(self, attn: Any, video: Any, text: Any, mask: Any, rotary: Any) -> Any:
        """Attend among text and video; return the outputs of video and of text."""
        _refuse(self.layer.name, mask, "no mask over text and video")
        length = text.shape[1]
        tokens = torch.cat([text, video], dim=1)
        if attn.fused_projections:
            q, k, v = (_heads(attn, x) for x in attn.to_qkv(tokens).chunk(3, dim=-1))
        else:
            q, k, v = (_heads(attn, project(tokens)) for project in (attn.to_q, attn.to_k, attn.to_v))
        q, k = _normed(attn.norm_q, q), _normed(attn.norm_k, k)
        if rotary is not None:
            q, k = (torch.cat([x[:, :length], _turned(x[:, length:], rotary)], dim=1) for x in (q, k))
        out = _project_out(attn, self.layer.attend(q, k, v))
        return out[:, length:], out[:, :length]


class _TwoProjections(Processor):
    """Video and text projected each by its own layers, then one sequence: video, text."""

    def turned(self, x: Any, rotary: Any) -> Any:
        """Return queries or keys of the video tokens with their rotary embedding."""
        return _turned(x, rotary)

    def routed(self, attn: Any, video: Any, text: Any, mask: Any, rotary: Any) -> Any:
        """Attend among video and text; return the outputs of both."""
        split = video.shape[1]
        q, k, v = (_heads(attn, project(video)) for project in (attn.to_q, attn.to_k, attn.to_v))
        text_q, text_k, text_v = (
            _heads(attn, project(text)) for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        )
        q, k = (self.turned(x, rotary) for x in (_normed(attn.norm_q, q), _normed(attn.norm_k, k)))
        text_q, text_k = _normed(attn.norm_added_q, text_q), _normed(attn.norm_added_k, text_k)
        text_q, text_k, text_v, mask = self.ordered(text_q, text_k, text_v, mask)
        out = self.layer.attend(
            torch.cat([q, text_q], dim=1), torch.cat([k, text_k], dim=1), torch.cat([v, text_v], dim=1), mask
        )
        return self.project_out(attn, out[:, :split], out[:, split:])

    def ordered(self, q: Any, k: Any, v: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
        """Return text with valid tokens first, and its bool mask (batch, text tokens)."""
        return q, k, v, mask.bool()

    def project_out(self, attn: Any, video: Any, text: Any) -> tuple[Any, Any]:
        """Return the layer's outputs of both."""
        return _project_out(attn, video), attn.to_add_out(text.flatten(2))


class HunyuanVideo15Processor(_TwoProjections):
    """HunyuanVideo 1.5: the model puts valid text first, and its mask (batch, text tokens) says how much there is.

    The model's own processor expands that mask to (batch, 1, tokens, tokens); nothing of that size is made here.
    """


class MochiProcessor(_TwoProjections):
    """Mochi: video, then the valid text alone, first in its output as well."""

    def turned(self, x: Any, rotary: Any) -> Any:
        """Turn pairs of neighbouring channels, by an angle of each head."""
        if rotary is None:
            return x
        cos, sin = rotary
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)

    def ordered(self, q: Any, k: Any, v: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
        """Move valid text to the front, in its order."""
        valid, order = torch.sort(mask.bool(), dim=1, descending=True, stable=True)
        places = order[:, :, None, None].expand_as(q)
        return *(x.gather(1, places) for x in (q, k, v)), valid

    def project_out(self, attn: Any, video: Any, text: Any) -> tuple[Any, Any]:
        """Return the layer's outputs of both."""
        text = text.flatten(2)  # the last layer has no projection of the text, which nobody reads
        return _project_out(attn, video), attn.to_add_out(text) if hasattr(attn, "to_add_out") else text


def _heads(attn: Any, x: Any) -> Any:
    """Return (batch, tokens, channels) as (batch, tokens, heads, head_dim)."""
    return x.unflatten(2, (attn.heads, -1))


def _normed(norm: Any, x: Any) -> Any:
    return x if norm is None else norm(x)


def _turned(x: Any, rotary: Any, **options: Any) -> Any:
    """Return (batch, tokens, heads, head_dim) with its rotary embedding, if there is one."""
    if rotary is None:
        return x
    from diffusers.models.embeddings import apply_rotary_emb

    return apply_rotary_emb(x, rotary, sequence_dim=1, **options)


def _project_out(attn: Any, x: Any) -> Any:
    linear, dropout = attn.to_out
    return dropout(linear(x.flatten(2)))


def _refuse(name: str, mask: Any, rule: str) -> None:
    if mask is not None:
        raise UnsupportedError(
            f"{name}: the layer must have {rule}, got one of shape {tuple(mask.shape)}. It would be dropped. "
            "Hint: leave this layer dense, per_layer={...: None}."
        )
