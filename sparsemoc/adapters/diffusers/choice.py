"""Which spec each layer has: the common one, its own, or none, which is dense."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsemoc.spec.errors import SpecError, describe, did_you_mean
from sparsemoc.spec.routing import RoutingSpec

Key = int | str


@dataclass(frozen=True)
class Choice:
    """Which layers have another spec than the common one.

    Args:
        dense_layers: the first n layers, or a collection of their numbers or names; None for none.
        per_layer: number or name to the spec of that layer, or None for dense.

    Raises:
        SpecError: values that are no specs, or that hold a stream.
    """

    dense_layers: int | Collection[Key] | None = None
    per_layer: Mapping[Key, RoutingSpec | None] | None = None

    def __post_init__(self) -> None:
        if self.per_layer is not None and not isinstance(self.per_layer, Mapping):
            raise SpecError(
                f"enable: per_layer must map layers to specs, got {describe(self.per_layer)}. "
                "Hint: per_layer={3: spec, 4: None}."
            )
        for key, own in (self.per_layer or {}).items():
            if own is not None:
                self.checked(own, f"per_layer[{key!r}]")

    def specs(self, names: Sequence[str], spec: RoutingSpec) -> list[RoutingSpec | None]:
        """Return the spec of each layer, None for dense.

        Args:
            names: the layers, in the order of the model.
            spec: the common spec.

        Raises:
            SpecError: no spec, or a layer that the model does not have.
        """
        found: list[RoutingSpec | None] = [self.checked(spec, "spec")] * len(names)
        for index in _dense(names, self.dense_layers):
            found[index] = None
        for key, own in (self.per_layer or {}).items():
            found[_index(names, key, "per_layer")] = own
        return found

    @staticmethod
    def checked(spec: Any, argument: str) -> RoutingSpec:
        """Return a spec without a stream."""
        if not isinstance(spec, RoutingSpec):
            raise SpecError(
                f"enable: {argument} must be a RoutingSpec, got {describe(spec)}. Hint: RoutingSpec(top_k=3)."
            )
        if spec.stream is not None:
            raise SpecError(
                f"enable: {argument} must have no stream, got {describe(spec.stream)}. The stream is built from the "
                "model's own latent grid and text at every pass. Hint: dataclasses.replace(spec, stream=None), and "
                "shots=(0, 5) where shots begin."
            )
        return spec


def _dense(names: Sequence[str], dense_layers: Any) -> list[int]:
    if dense_layers is None:
        return []
    if isinstance(dense_layers, Collection) and not isinstance(dense_layers, (str, bytes)):
        return [_index(names, key, "dense_layers") for key in dense_layers]
    if isinstance(dense_layers, int) and not isinstance(dense_layers, bool) and 0 <= dense_layers <= len(names):
        return list(range(dense_layers))
    raise SpecError(
        f"enable: dense_layers must be a number of layers from 0 to {len(names)}, a collection of numbers or names, or "
        f"None, got {describe(dense_layers)}. Hint: dense_layers=2, or dense_layers=({names[0]!r},)."
    )


def _index(names: Sequence[str], key: Any, argument: str) -> int:
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(names):
        return key
    if isinstance(key, str) and key in names:
        return names.index(key)
    hint = did_you_mean(key, names) or f" Hint: the first is {names[0]!r}."
    raise SpecError(
        f"enable: {argument} must name layers by 0 to {len(names) - 1} or by their names, got {describe(key)}.{hint}"
    )
