"""One routed attention layer: Mixture of Contexts over the stream of the pass, or dense where that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sparsemoc import api
from sparsemoc.adapters.diffusers import bridge
from sparsemoc.adapters.diffusers.masks import key_lengths
from sparsemoc.adapters.diffusers.streams import Shots
from sparsemoc.adapters.diffusers.ulysses import Ulysses
from sparsemoc.adapters.seeds import route_seed
from sparsemoc.backends import Options
from sparsemoc.spec.errors import ShapeError, SpecError, UnsupportedError
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream

OWN_PROCESSOR = "Hint: Family(processor=...) takes a subclass of sparsemoc.diffusers.Processor of your own."
PARALLEL_LATER = (
    "enable: parallelism must be set up before, got a model that was enabled and then split over devices. "
    "Hint: model.enable_parallelism(config=...), then enable."
)


@dataclass(eq=False)
class State:
    """What the layers of one model share. The pass sets `stream` and `training`, the denoising step sets `dense`."""

    stream: Stream | None = None
    training: bool = False
    dense: bool | None = False
    shots: Shots = field(default_factory=Shots)
    monitor: Any = None
    backend: Any = "auto"
    options: Options = field(default_factory=Options)


class Layer:
    """One layer: what its processor holds."""

    def __init__(self, name: str, module_name: str, state: State, ulysses: Ulysses | None = None) -> None:
        self.name = name
        self.module_name = module_name
        self.state = state
        self.spec: RoutingSpec | None = None
        #: Of dense passes: the backend and the parallelism that the processor had before.
        self.dense_backend: Any = None
        self.dense_parallel: Any = None
        #: How the tokens are shared among devices, or None.
        self.ulysses = ulysses

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        """A copied model holds the same layers, and is refused."""
        return self

    def dense(self) -> bool:
        """Say whether this pass is dense here: by the spec, or by the denoising step."""
        if self.state.dense is None:
            raise SpecError(
                f"{self.name}: the denoising step must be known for dense_steps, and no pipeline has begun a run. "
                "Hint: enable(pipe, ...), or in a loop of your own handle.step = 0, 1, ..."
            )
        return self.spec is None or self.state.dense

    def attend(self, q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None) -> Any:
        """Attend by the spec.

        Args:
            q, k, v: (batch, tokens, heads, head_dim), post-RoPE, in the order of the stream; this device's part of
                the tokens where devices share them.
            mask: as `key_lengths` takes it.
            scale: factor on the logits.
        """
        assert self.spec is not None
        if self.ulysses is None:
            return self._attend(q, k, v, self.spec, mask, scale)
        q, k, v = (self.ulysses.to_heads(x) for x in (q, k, v))
        heads = q.shape[2]
        spec = self.ulysses.own(self.spec, heads)
        return self.ulysses.to_tokens(self._attend(q, k, v, spec, mask, scale, self.ulysses.rank * heads))

    def _attend(
        self, q: Any, k: Any, v: Any, spec: RoutingSpec, mask: Any, scale: float | None, head_start: int = 0
    ) -> Any:
        state, stream = self.state, self.state.stream
        assert stream is not None
        if q.shape[1] != stream.tokens:
            raise ShapeError(
                f"{self.name}: the latent grid must match the tokens: {_shown(stream)} make {stream.tokens}, got "
                f"{q.shape[1]} tokens. Hint: check `grid`, `text` and `order` of the Family."
            )
        lengths = key_lengths(self.name, stream, mask, checked=state.options.checked)
        seed = route_seed(spec, state.training, q.device)
        found = api.attention(
            q, k, v, spec, stream=stream, key_lengths=lengths, scale=scale, training=seed is not None, seed=seed,
            backend=state.backend, options=state.options, head_start=head_start,
            return_layout=state.monitor is not None,
        )  # fmt: skip
        if state.monitor is None:
            return found
        out, layout = found
        state.monitor.record(self.name, layout)
        return out


def dispatched(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    _parallel_config: Any = None,
) -> Any:
    """Serve diffusers' dispatcher; the layer stands in `_parallel_config`."""
    layer = _parallel_config
    if layer is None:
        raise UnsupportedError(
            "enable: a routed processor must pass its `_parallel_config` to diffusers' dispatcher, got None. "
            f"{OWN_PROCESSOR}"
        )
    if not isinstance(layer, Layer):
        raise UnsupportedError(PARALLEL_LATER)
    if layer.dense():
        return bridge.dense(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa, backend=layer.dense_backend, parallel_config=layer.dense_parallel,
        )  # fmt: skip
    if dropout_p or is_causal:
        raise UnsupportedError(
            f"{layer.name}: dropout_p must be 0 and is_causal False, got {dropout_p} and {is_causal}. "
            'Hint: RoutingSpec(causal="token") is the causal form, RouteDropout drops routes.'
        )
    return layer.attend(query, key, value, attn_mask, scale)


def _shown(stream: Stream) -> str:
    parts = [f"{s.kind} {s.tokens if s.grid is None else s.grid}" for s in stream.segments]
    return " + ".join(parts)
