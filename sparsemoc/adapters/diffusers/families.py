"""The families that are known: each model class of diffusers by name, so that none of them is imported."""

from __future__ import annotations

from math import prod
from typing import Any

from sparsemoc.adapters.diffusers.family import Family, Inputs, family_of, patches, register_family
from sparsemoc.adapters.diffusers.processors import (
    CogVideoXProcessor,
    CosmosProcessor,
    HunyuanVideo15Processor,
    MochiProcessor,
)
from sparsemoc.spec.errors import ShapeError

__all__ = ["family_of", "register_family"]

Grid = tuple[int, int, int]


def _triple(config: Any, inputs: Inputs) -> Grid:
    """(batch, channels, frames, height, width), patch_size of three numbers."""
    return patches(inputs["hidden_states"].shape[2:], config.patch_size)


def _square(config: Any, inputs: Inputs) -> Grid:
    """(batch, channels, frames, height, width), one patch_size for height and width, one for frames."""
    sizes = (config.patch_size_t, config.patch_size, config.patch_size)
    return patches(inputs["hidden_states"].shape[2:], sizes)


def _mochi(config: Any, inputs: Inputs) -> Grid:
    """(batch, channels, frames, height, width), frames not patched."""
    return patches(inputs["hidden_states"].shape[2:], (1, config.patch_size, config.patch_size))


def _cogvideox(config: Any, inputs: Inputs) -> Grid:
    """(batch, frames, channels, height, width); patch_size_t is None before version 1.5."""
    _, frames, _, height, width = inputs["hidden_states"].shape
    return patches((frames, height, width), (config.patch_size_t or 1, config.patch_size, config.patch_size))


def _ltx(config: Any, inputs: Inputs) -> Grid:
    """The latent comes as a sequence of patches; its grid stands in arguments of its own."""
    given = tuple(inputs.get(name) for name in ("num_frames", "height", "width"))
    if None in given:
        raise ShapeError(
            f"enable: forward must be given num_frames, height and width for the latent grid, got {given}. "
            "Hint: pass all three; coordinates alone do not say how the patches lie."
        )
    grid: Grid = (inputs["num_frames"], inputs["height"], inputs["width"])
    tokens, made = inputs["hidden_states"].shape[1], prod(grid)
    if made != tokens:
        raise ShapeError(
            f"enable: the latent grid must match the tokens: num_frames, height and width are {grid} and make {made}, "
            f"got {tokens} tokens of hidden_states. Hint: pass the sizes of the latent in patches, not of the clip."
        )
    return grid


def _text(config: Any, inputs: Inputs) -> int:
    return _length(inputs, "encoder_hidden_states")


def _three_texts(config: Any, inputs: Inputs) -> int:
    """Both text encoders and the image: one sequence, valid tokens first."""
    names = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")
    return sum(_length(inputs, name) for name in names)


def _length(inputs: Inputs, name: str) -> int:
    if inputs.get(name) is None:
        raise ShapeError(f"enable: forward must be given {name}, whose tokens stand beside those of video, got None.")
    length: int = inputs[name].shape[1]
    return length


_BLOCKS = r"transformer_blocks\.\d+\.attn1"

register_family("WanTransformer3DModel", Family(r"blocks\.\d+\.attn1", _triple))
register_family("WanVACETransformer3DModel", Family(r"(vace_)?blocks\.\d+\.attn1", _triple))
register_family("LTXVideoTransformer3DModel", Family(_BLOCKS, _ltx))
register_family("CosmosTransformer3DModel", Family(_BLOCKS, _triple, processor=CosmosProcessor))
register_family(
    "HunyuanVideoTransformer3DModel",
    Family(r"(single_)?transformer_blocks\.\d+\.attn", _square, ("video", "text"), _text),
)
register_family(
    "HunyuanVideo15Transformer3DModel",
    Family(
        r"transformer_blocks\.\d+\.attn", _square, ("video", "text"), _three_texts, processor=HunyuanVideo15Processor
    ),
)
register_family(
    "CogVideoXTransformer3DModel",
    Family(_BLOCKS, _cogvideox, ("text", "video"), _text, processor=CogVideoXProcessor),
)
register_family("MochiTransformer3DModel", Family(_BLOCKS, _mochi, ("video", "text"), _text, processor=MochiProcessor))
