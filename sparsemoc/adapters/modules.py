"""MoCAttention: self-attention with Mixture of Contexts, from the projections of q, k, v to that of the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from sparsemoc.adapters.seeds import route_seed
from sparsemoc.api import attention
from sparsemoc.backends import Backend, Options
from sparsemoc.spec import checks
from sparsemoc.spec.errors import ShapeError, SpecError, describe
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream

Tensor = Any
#: Turns (q, k), (batch, tokens, heads, head_dim) each, by their positions.
Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MoCAttention(nn.Module):
    """Self-attention of a transformer block: out_proj(attention(rotary(norm(x W_q), norm(x W_k)), x W_v)).

    Route dropout is applied in training mode only; its seed comes from torch's generator of x's device, so that
    activation checkpointing repeats the routes. `spec`, `rotary` and `monitor` may be replaced between steps. Under
    torch.compile the batch may vary; each stream and each spec is a graph of its own.

    Args:
        dim: width of x and of the output.
        heads: query heads.
        spec: the routing spec.
        kv_heads: key and value heads, `heads` when None; heads % kv_heads == 0.
        head_dim: width of a head, dim // heads when None.
        bias: whether the projections of q, k and v have a bias.
        out_bias: whether the output projection has one, as `bias` when None.
        qk_norm: RMSNorm of q and k before `rotary`: None, "head" (over head_dim) or "inner" (over all heads together).
        eps: of that norm.
        rotary: called with (q, k), (batch, tokens, heads, head_dim) each, packed (tokens, heads, head_dim); returns
            both, turned. What it returns is cast to the dtype of v.
        monitor: an object whose record(name, layout) is called with the Layout of every forward pass, or None, such as
            a `sparsemoc.training.Monitor`. It breaks the graph of torch.compile; return_layout does not.
        name: of this layer, for the monitor.
        backend, config, options, deterministic: as for `sparsemoc.attention`.
        device, dtype: of the parameters.

    Raises:
        SpecError: sizes that do not fit each other, an unknown qk_norm, a spec that is none.

    Example:
        >>> import sparsemoc as moc, torch
        >>> spec = moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=2, anchors=("chunk",))
        >>> layer = moc.torch.MoCAttention(64, 4, spec, kv_heads=2, qk_norm="head")
        >>> layer(torch.randn(2, 128, 64)).shape
        torch.Size([2, 128, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        spec: RoutingSpec,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        qk_norm: str | None = None,
        eps: float = 1e-6,
        rotary: Rotary | None = None,
        monitor: Any = None,
        name: str = "",
        backend: str | Backend = "auto",
        config: Any = None,
        options: Options | None = None,
        deterministic: bool | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim = checks.whole(dim, "MoCAttention: dim", least=1)
        self.heads = checks.whole(heads, "MoCAttention: heads", least=1)
        self.kv_heads = _checked_kv_heads(self.heads, kv_heads)
        self.head_dim = _checked_head_dim(self.dim, self.heads, head_dim)
        self.spec = spec
        self.qk_norm = qk_norm if qk_norm is None else checks.word(qk_norm, "MoCAttention: qk_norm", ("head", "inner"))
        self.rotary, self.monitor, self.name = rotary, monitor, name
        self._how = {"backend": backend, "config": config, "options": options, "deterministic": deterministic}
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        inner, kv_inner = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(self.dim, inner, bias, **made)
        self.k_proj = nn.Linear(self.dim, kv_inner, bias, **made)
        self.v_proj = nn.Linear(self.dim, kv_inner, bias, **made)
        self.out_proj = nn.Linear(inner, self.dim, bias if out_bias is None else out_bias, **made)
        if self.qk_norm is not None:
            whole = self.qk_norm == "inner"
            self.q_norm = nn.RMSNorm(inner if whole else self.head_dim, eps, **made)
            self.k_norm = nn.RMSNorm(kv_inner if whole else self.head_dim, eps, **made)

    @property
    def spec(self) -> RoutingSpec:
        """The routing spec; a training schedule may set another between steps."""
        return self._spec

    @spec.setter
    def spec(self, spec: RoutingSpec) -> None:
        if not isinstance(spec, RoutingSpec):
            raise SpecError(
                f"MoCAttention: spec must be a RoutingSpec, got {describe(spec)}. Hint: sparsemoc.load_spec(path)."
            )
        self._spec = spec

    def reset_parameters(self) -> None:
        """Draw the parameters anew, by the defaults of torch's Linear and RMSNorm."""
        for layer in self.children():
            layer.reset_parameters()

    def forward(
        self,
        x: Tensor,
        *,
        stream: Stream | Sequence[Stream] | None = None,
        key_lengths: Tensor | None = None,
        rotary: Rotary | None = None,
        seed: Any = None,
        return_layout: bool = False,
    ) -> Any:
        """Attend within each stream.

        Args:
            x: (batch, tokens, dim); or packed (tokens, dim), samples end to end.
            stream: the tokens, where the spec has no stream; packed: a tuple, one for each sample. With neither, x is
                one video segment.
            key_lengths: int (batch, segments), packed (samples, most segments): valid tokens of each segment.
            rotary: in place of the layer's own.
            seed: of route dropout, an int or a 0-d integer tensor, in place of one from torch's generator.
            return_layout: whether to return the Layout as well.

        Returns:
            out, as x; then the Layout, if asked for. Tokens that see no key give the bias of the output projection.

        Raises:
            ShapeError: x has another rank or width; rotary changes a shape.
            SpecError, ShapeError, UnsupportedError: as `sparsemoc.attention`.
        """
        if x.ndim not in (2, 3) or x.shape[-1] != self.dim:
            raise ShapeError(
                f"MoCAttention: `x` must have shape (batch, tokens, {self.dim}), or packed (tokens, {self.dim}), "
                f"got {tuple(x.shape)}."
            )
        q, k, v = self._projected(x, self.rotary if rotary is None else rotary)
        recorded = return_layout or self.monitor is not None
        found = attention(
            q,
            k,
            v,
            self.spec,
            stream=stream,
            key_lengths=key_lengths,
            training=self.training,
            seed=route_seed(self.spec, self.training, x.device) if seed is None else seed,
            return_layout=recorded,
            **self._how,
        )
        out, layout = found if recorded else (found, None)
        if self.monitor is not None:
            self.monitor.record(self.name, layout)
        out = self.out_proj(out.flatten(-2))
        return (out, layout) if return_layout else out

    def _projected(self, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v as the attention takes them: (..., tokens, heads, head_dim)."""
        q, k, v = self.q_proj(x), self.k_proj(x), self._split(self.v_proj(x))
        if self.qk_norm == "inner":
            q, k = _normed(self.q_norm, q), _normed(self.k_norm, k)
        q, k = self._split(q), self._split(k)
        if self.qk_norm == "head":
            q, k = _normed(self.q_norm, q), _normed(self.k_norm, k)
        if rotary is not None:
            q, k = _turned(rotary, q, k)
        return q.to(v.dtype), k.to(v.dtype), v  # under autocast, norms and rotary angles give float32

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def extra_repr(self) -> str:
        """Return the sizes and the heart of the spec, for the module's repr."""
        spec = self.spec
        return (
            f"dim={self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, "
            f"qk_norm={self.qk_norm!r}, chunks={spec.chunks}, top_k={spec.top_k}, anchors={spec.anchors}, "
            f"causal={spec.causal!r}"
        )


def _checked_kv_heads(heads: int, kv_heads: int | None) -> int:
    number = heads if kv_heads is None else checks.whole(kv_heads, "MoCAttention: kv_heads", least=1)
    if heads % number:
        raise SpecError(
            f"MoCAttention: heads must be a multiple of kv_heads, got {heads} and {number}. "
            "Query head h reads key head h // (heads / kv_heads)."
        )
    return number


def _checked_head_dim(dim: int, heads: int, head_dim: int | None) -> int:
    if head_dim is not None:
        return checks.whole(head_dim, "MoCAttention: head_dim", least=1)
    if dim % heads:
        raise SpecError(
            f"MoCAttention: dim must be a multiple of heads where head_dim is not given, got {dim} and {heads}. "
            "Hint: head_dim=64."
        )
    return dim // heads


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    return norm(x.to(norm.weight.dtype))  # autocast leaves the two apart, and torch then warns of a slow way


def _turned(rotary: Rotary, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    turned = rotary(q, k)
    if not isinstance(turned, tuple) or len(turned) != 2 or any(not isinstance(x, torch.Tensor) for x in turned):
        raise ShapeError(f"MoCAttention: rotary must return the tensors (q, k), got {describe(turned)}.")
    shapes, wanted = tuple(tuple(x.shape) for x in turned), (tuple(q.shape), tuple(k.shape))
    if shapes != wanted:
        raise ShapeError(f"MoCAttention: rotary must return (q, k) of shapes {wanted}, got {shapes}.")
    return turned
