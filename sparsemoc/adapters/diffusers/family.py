"""What the adapter must know of a model class: its routed layers, its latent grid, and where its text stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsemoc.spec import checks
from sparsemoc.spec.errors import SpecError, UnsupportedError, describe

Inputs = Mapping[str, Any]
ORDERS = (("video",), ("text", "video"), ("video", "text"))

HOW_TO_DESCRIBE = """Hint: describe it in a few lines, here for self-attention over video alone:

    from sparsemoc.diffusers import Family, enable, patches

    family = Family(
        layers=r"blocks\\.\\d+\\.attn1",  # the modules to route, by name
        grid=lambda config, inputs: patches(inputs["hidden_states"].shape[2:], config.patch_size),
    )
    handle = enable(model, spec, family=family)

and for text in the same sequence also order=("video", "text") and text=lambda config, inputs: (its length)."""


@dataclass(frozen=True)
class Family:
    r"""A family of video diffusion transformers, described for `enable`.

    Args:
        layers: regular expression of the names of the modules to route, as `model.named_modules()` gives them. Each
            has a `processor`, and sees the whole token sequence.
        grid: function of (model.config, inputs), with the forward arguments by name in `inputs`, that returns
            (frames, height, width) in latent patches.
        order: what stands in the sequence: ("video",), ("text", "video") or ("video", "text").
        text: function of (model.config, inputs) that returns the number of text tokens, padding included; with text.
        processor: makes the attention processor of a layer from (layer, the processor it stands for), a subclass of
            `Processor`; None where the model's own processors ask diffusers' dispatcher for the backend in their
            `_attention_backend`.

    Raises:
        SpecError: a value outside these rules.

    Example:
        >>> wan = Family(
        ...     layers=r"blocks\.\d+\.attn1",
        ...     grid=lambda config, inputs: patches(inputs["hidden_states"].shape[2:], config.patch_size),
        ... )
    """

    layers: str
    grid: Callable[[Any, Inputs], tuple[int, int, int]]
    order: tuple[str, ...] = ("video",)
    text: Callable[[Any, Inputs], int] | None = None
    processor: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.layers)
        except (re.error, TypeError) as error:
            raise SpecError(
                f"Family: layers must be a regular expression of module names, got {describe(self.layers)}: {error}. "
                r'Hint: r"blocks\.\d+\.attn1".'
            ) from None
        order = tuple(self.order) if checks.is_items(self.order) else self.order
        if order not in ORDERS:
            raise SpecError(
                f'Family: order must be ("video",), ("text", "video") or ("video", "text"), got {describe(self.order)}.'
            )
        object.__setattr__(self, "order", order)
        if ("text" in order) != (self.text is not None):
            raise SpecError(
                "Family: text must be given where `order` holds text, and only there, "
                f"got text={describe(self.text)} with order={order}. Hint: text=lambda config, inputs: 226."
            )


def patches(latent: Sequence[int], patch_size: Sequence[int]) -> tuple[int, int, int]:
    """Return (frames, height, width) in patches.

    Args:
        latent: (frames, height, width) of the latent.
        patch_size: (frames, height, width) of a patch.
    """
    (frames, height, width), (p_frames, p_height, p_width) = latent, patch_size
    return frames // p_frames, height // p_height, width // p_width


_FAMILIES: dict[str, Family] = {}


def register_family(class_name: str, family: Family) -> None:
    """Make `enable` know a model class, and its subclasses, by name.

    Args:
        class_name: `type(model).__name__`.
        family: its description; it takes the place of an older one.

    Raises:
        SpecError: `family` is no Family.
    """
    if not isinstance(family, Family):
        raise SpecError(f"register_family: family must be a Family, got {describe(family)}.")
    _FAMILIES[class_name] = family


def family_of(model: Any) -> Family:
    """Return the family of a model by the name of its class or of the nearest base class that is known.

    Raises:
        UnsupportedError: there is none; the text shows how to describe one.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in _FAMILIES:
            return _FAMILIES[cls.__name__]
    known = ", ".join(sorted(_FAMILIES))
    raise UnsupportedError(
        f"enable: the model must be of a family that is known ({known}), got {type(model).__name__}. {HOW_TO_DESCRIBE}"
    )
