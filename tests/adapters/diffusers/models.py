"""Tiny models of every family, randomly initialised, with inputs, and their streams written out by hand.

Frames, height and width differ everywhere, in the latent and in patches, and so do text lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sparsemoc import Segment, Stream

BATCH = 2


@dataclass(frozen=True)
class Case:
    """A model, its forward arguments, and what they must come to.

    Attributes:
        model: makes the model.
        inputs: makes the forward arguments.
        stream: of the arguments, by hand.
        lengths: valid tokens of each segment, for each sample; None where nothing pads.
        layers: names of the routed layers.
        frames: axis of latent frames in hidden_states, and how many of them make a frame of patches.
        texts: the arguments that hold text.
    """

    model: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    stream: Stream
    lengths: tuple[tuple[int, ...], ...] | None
    layers: tuple[str, ...]
    frames: tuple[int, int] = (2, 1)
    texts: tuple[str, ...] = ("encoder_hidden_states",)

    def build(self) -> Any:
        torch.manual_seed(0)
        model = self.model()
        with torch.no_grad():  # what is initialised to zero would hide errors, and the projections are too weak
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        return model.eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def mask(text: int, *valid: int) -> torch.Tensor:
    return torch.arange(text)[None] < torch.tensor(valid)[:, None]


def wan() -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def wan_inputs() -> dict[str, Any]:
    return {
        "hidden_states": draw(BATCH, 4, 3, 4, 10),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": draw(BATCH, 7, 8),
    }


def wan_inputs_per_token() -> dict[str, Any]:
    return {**wan_inputs(), "timestep": torch.arange(30).expand(BATCH, 30) * 7}


def vace() -> Any:
    from diffusers import WanVACETransformer3DModel

    return WanVACETransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=2, rope_max_seq_len=32, vace_layers=[0], vace_in_channels=6,
    )  # fmt: skip


def vace_inputs() -> dict[str, Any]:
    return {**wan_inputs(), "control_hidden_states": draw(BATCH, 6, 3, 4, 10)}


def ltx() -> Any:
    from diffusers import LTXVideoTransformer3DModel

    return LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=8,
    )  # fmt: skip


def ltx_inputs() -> dict[str, Any]:
    return {
        "hidden_states": draw(BATCH, 30, 4),
        "encoder_hidden_states": draw(BATCH, 7, 8),
        "timestep": torch.tensor([500, 500]),
        "encoder_attention_mask": mask(7, 4, 7).long(),
        "num_frames": 3,
        "height": 2,
        "width": 5,
    }


def cosmos() -> Any:
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, mlp_ratio=2,
        text_embed_dim=8, adaln_lora_dim=4, max_size=(8, 16, 16), patch_size=(1, 2, 2), concat_padding_mask=False,
        extra_pos_embed_type=None,
    )  # fmt: skip


def hunyuan() -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    return HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=8,
        pooled_projection_dim=8, rope_axes_dim=(4, 4, 4),
    )  # fmt: skip


def hunyuan_inputs() -> dict[str, Any]:
    return {
        "hidden_states": draw(BATCH, 4, 3, 4, 10),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": draw(BATCH, 7, 8),
        "encoder_attention_mask": mask(7, 4, 7),
        "pooled_projections": draw(BATCH, 8),
        "guidance": torch.tensor([6000.0, 6000.0]),
    }


def hunyuan15() -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    return HunyuanVideo15Transformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=8, text_embed_2_dim=6, image_embed_dim=5,
        rope_axes_dim=(4, 4, 4),
    )  # fmt: skip


def hunyuan15_inputs() -> dict[str, Any]:
    return {
        "hidden_states": draw(BATCH, 4, 3, 4, 10),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": draw(BATCH, 7, 8),
        "encoder_attention_mask": mask(7, 4, 7),
        "encoder_hidden_states_2": draw(BATCH, 4, 6),
        "encoder_attention_mask_2": mask(4, 0, 3),
        "image_embeds": torch.zeros(BATCH, 3, 5),
    }


def cogvideox() -> Any:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=4,
        text_embed_dim=8, num_layers=2, sample_width=10, sample_height=4, sample_frames=9, patch_size=2,
        max_text_seq_length=7,
    )  # fmt: skip


def cogvideox_inputs() -> dict[str, Any]:
    return {
        "hidden_states": draw(BATCH, 3, 4, 4, 10),
        "encoder_hidden_states": draw(BATCH, 7, 8),
        "timestep": torch.tensor([500, 500]),
    }


def cogvideox15() -> Any:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, time_embed_dim=4,
        text_embed_dim=8, num_layers=2, sample_width=10, sample_height=4, sample_frames=9, patch_size=2,
        patch_size_t=2, max_text_seq_length=7, use_rotary_positional_embeddings=True, patch_bias=False,
    )  # fmt: skip


def cogvideox15_inputs() -> dict[str, Any]:
    angles = draw(30, 6).repeat_interleave(2, dim=1)
    return {
        "hidden_states": draw(BATCH, 6, 4, 4, 10),
        "encoder_hidden_states": draw(BATCH, 7, 8),
        "timestep": torch.tensor([500, 500]),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def mochi() -> Any:
    from diffusers import MochiTransformer3DModel

    return MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=12, num_layers=2, pooled_projection_dim=6,
        in_channels=4, text_embed_dim=8, time_embed_dim=4,
    )  # fmt: skip


def mochi_inputs() -> dict[str, Any]:
    return {
        "hidden_states": draw(BATCH, 4, 3, 4, 10),
        "encoder_hidden_states": draw(BATCH, 7, 8),
        "timestep": torch.tensor([500, 500]),
        "encoder_attention_mask": mask(7, 4, 7),
    }


VIDEO = Stream((Segment("video", grid=(3, 2, 5)),))
VIDEO_TEXT = Stream((Segment("video", grid=(3, 2, 5)), Segment("text", 7)))
TEXT_VIDEO = Stream((Segment("text", 7), Segment("video", grid=(3, 2, 5))))
PADDED = ((30, 4), (30, 7))
SELF = ("blocks.0.attn1", "blocks.1.attn1")
BLOCKS = tuple(f"transformer_{name}" for name in SELF)

CASES = {
    "wan": Case(wan, wan_inputs, VIDEO, None, SELF),
    "wan-per-token": Case(wan, wan_inputs_per_token, VIDEO, None, SELF),
    "vace": Case(vace, vace_inputs, VIDEO, None, (*SELF, "vace_blocks.0.attn1")),
    "ltx": Case(ltx, ltx_inputs, VIDEO, None, BLOCKS, (1, 10)),
    "cosmos": Case(cosmos, wan_inputs, VIDEO, None, BLOCKS),
    "hunyuan": Case(
        hunyuan, hunyuan_inputs, VIDEO_TEXT, PADDED, ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn")
    ),
    "hunyuan15": Case(
        hunyuan15,
        hunyuan15_inputs,
        Stream((Segment("video", grid=(3, 2, 5)), Segment("text", 7 + 4 + 3))),  # both texts and the image
        ((30, 4), (30, 10)),  # a zero image is no image: 4 + 0 and 7 + 3 valid tokens
        ("transformer_blocks.0.attn", "transformer_blocks.1.attn"),
        texts=("encoder_hidden_states", "encoder_hidden_states_2"),
    ),
    "cogvideox": Case(cogvideox, cogvideox_inputs, TEXT_VIDEO, None, BLOCKS, (1, 1)),
    "cogvideox15": Case(cogvideox15, cogvideox15_inputs, TEXT_VIDEO, None, BLOCKS, (1, 2)),
    "mochi": Case(mochi, mochi_inputs, VIDEO_TEXT, PADDED, BLOCKS),
}
