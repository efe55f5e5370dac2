"""What `enable` was given: a pipeline, a transformer, or one of them wrapped."""

from __future__ import annotations

from typing import Any

import torch

from sparsemoc.adapters.diffusers import families
from sparsemoc.adapters.diffusers.family import Family
from sparsemoc.adapters.diffusers.routed import routed_of
from sparsemoc.spec.errors import SpecError, UnsupportedError, describe


def transformers_of(target: Any, family: Family | None) -> dict[str, tuple[Any, Family]]:
    """Return the transformers to route and their families by name; the name of a lone one is empty.

    Args:
        target: a pipeline (anything with `components`) or a module; a compiled or adapted module is unwrapped.
        family: of every transformer, where given.

    Raises:
        SpecError: something else, or a pipeline without a transformer.
        UnsupportedError: a class that is not known, a model that is enabled already.
    """
    if isinstance(target, torch.nn.Module):
        models = {"": target}
    else:
        models = _components(target)
    found = {}
    for name, model in models.items():
        model = _unwrapped(model)
        found[name] = (model, families.family_of(model) if family is None else family)
        _check_free(model)
    return found


def _components(pipe: Any) -> dict[str, Any]:
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        raise SpecError(
            f"enable: the target must be a pipeline or a transformer of diffusers, got {describe(pipe)}. "
            "Hint: enable(pipe, spec) or enable(pipe.transformer, spec)."
        )
    found = {
        name: part
        for name, part in components.items()
        if name.startswith("transformer") and isinstance(part, torch.nn.Module)
    }
    if not found:
        raise SpecError(
            f"enable: the pipeline must have a transformer, got components {sorted(components)}. "
            "Hint: enable(model, spec) takes the module itself."
        )
    return found


def _unwrapped(model: Any) -> Any:
    """Return the model inside torch.compile's module, DistributedDataParallel and PEFT's."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_free(model: Any) -> None:
    if routed_of(model) is not None:
        raise UnsupportedError(
            f"enable: {type(model).__name__} must not be enabled yet, got one that is. "
            "Hint: handle.remove() first, or handle.set_spec(spec)."
        )
