"""One model with its routed layers: what is put into it, what it learns at each pass, and how it is taken out again."""

from __future__ import annotations

import copy
import inspect
import re
import weakref
from collections.abc import Callable
from operator import index
from typing import Any

import torch

from sparsemoc.adapters.diffusers import bridge, recall
from sparsemoc.adapters.diffusers.family import Family
from sparsemoc.adapters.diffusers.kept import stream_of
from sparsemoc.adapters.diffusers.layer import OWN_PROCESSOR, PARALLEL_LATER, Layer, State, dispatched
from sparsemoc.adapters.diffusers.ulysses import ulysses_of
from sparsemoc.spec.errors import SpecError, UnsupportedError, describe
from sparsemoc.spec.stream import Stream


class Routed:
    """A model that routes. It is itself the hook that runs before each forward pass."""

    def __init__(self, model: Any, family: Family, state: State, prefix: str = "") -> None:
        self.state = state
        self.layers: list[Layer] = []
        #: Called before each pass.
        self.follow: Callable[[], None] | None = None
        self._family = family
        self._model = weakref.ref(model)
        self._arguments = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._placed: list[tuple[Any, Any, Any]] = []  # module, its own processor, ours
        self._parallel = getattr(model, "_parallel_config", None)
        ulysses = ulysses_of(self._parallel, family, f"enable: {type(model).__name__}")
        for name, module in _attentions(model, family):
            self._place(Layer(prefix + name, name, state, ulysses), module)
        self._hook = model.register_forward_pre_hook(self, with_kwargs=True)
        bridge.install(dispatched)
        self._uninstall = weakref.finalize(model, bridge.uninstall)  # at most once, and when the model is gone

    def remove(self) -> None:
        """Give every layer its own processor back, and forget the model."""
        self._hook.remove()
        for layer, (module, own, ours) in zip(self.layers, self._placed, strict=True):
            layer.spec = None  # whoever kept our processor gets a dense one
            if module.processor is ours:
                module.processor = own
        model = self._model()
        if model is not None:
            recall.forget(model)
        self._uninstall()

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Learn the latent grid and the text length of a pass."""
        self._check(module)
        if self.follow is not None:
            self.follow()
        inputs = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        self.state.stream = self.stream(module.config, inputs)
        self.state.training = module.training
        if getattr(module, "gradient_checkpointing", False) and not torch.compiler.is_compiling():
            recall.recall(module, self.state, self.layers)

    def __deepcopy__(self, memo: dict[int, Any]) -> Routed:
        """A copied model has the same hook, which refuses it."""
        return self

    def __reduce__(self) -> Any:
        raise UnsupportedError(
            "enable: a model must not be pickled while it is enabled, got pickle or torch.save of the whole of it. "
            "Hint: handle.remove() first; model.save_pretrained() and model.state_dict() hold nothing of ours."
        )

    def stream(self, config: Any, inputs: dict[str, Any]) -> Stream:
        """Return the stream of a pass with these forward arguments."""
        family = self._family
        # A compiler with symbolic sizes makes one graph for each stream: `index` asks it for the number.
        frames, height, width = family.grid(config, inputs)
        grid = (index(frames), index(height), index(width))
        text = 0 if family.text is None else index(family.text(config, inputs))
        return stream_of(family.order, grid, text, self.state.shots)

    def _place(self, layer: Layer, module: Any) -> None:
        """Give a layer's module a processor that routes. Layers may share one of their own, so it is never changed."""
        own = module.processor
        if self._family.processor is None:
            ours = copy.copy(own)
            layer.dense_backend, layer.dense_parallel = own._attention_backend, own._parallel_config
            ours._attention_backend, ours._parallel_config = bridge.MEMBER, layer
        else:
            ours = self._family.processor(layer, own)
        module.processor = ours
        self.layers.append(layer)
        self._placed.append((module, own, ours))

    def _check(self, module: Any) -> None:
        """Raise where the model is no longer what was enabled."""
        if module is not self._model():
            raise UnsupportedError(
                f"enable: {type(module).__name__} must be the model that was enabled, got a copy of it. "
                "Hint: handle.remove() before copying, then enable each."
            )
        if getattr(module, "_parallel_config", None) is not self._parallel:
            raise UnsupportedError(PARALLEL_LATER)
        for layer, (attention, _, ours) in zip(self.layers, self._placed, strict=True):
            if attention.processor is not ours:
                _changed(layer.name, f"the processor {type(attention.processor).__name__}")
            if self._family.processor is None and ours._attention_backend is not bridge.MEMBER:
                _changed(layer.name, f"the attention backend {ours._attention_backend!s}")


def routed_of(model: Any) -> Routed | None:
    """Return what routes a model, or None."""
    return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Routed)), None)


def _attentions(model: Any, family: Family) -> list[tuple[str, Any]]:
    """Return the names and modules to route, in the order of the model."""
    modules = {name: module for name, module in model.named_modules() if hasattr(module, "processor")}
    found = [(name, module) for name, module in modules.items() if re.fullmatch(family.layers, name)]
    if not found:
        raise SpecError(
            f"enable: layers of the Family must match attention modules of {type(model).__name__}, got "
            f"{family.layers!r}, which matches none. Hint: their names are {describe(list(modules))}."
        )
    for name, module in found:
        if family.processor is None and not hasattr(module.processor, "_parallel_config"):
            raise UnsupportedError(
                f"enable: {name} must have a processor that gives diffusers' dispatcher its `_parallel_config`, got "
                f"{type(module.processor).__name__}. {OWN_PROCESSOR}"
            )
    return found


def _changed(name: str, what: str) -> None:
    raise UnsupportedError(
        f"{name}: the processor must stay as enable set it, got {what}. The layer would be dense without a word. "
        "Hint: handle.remove(), then choose backends, fuse projections or set processors, then enable again."
    )
