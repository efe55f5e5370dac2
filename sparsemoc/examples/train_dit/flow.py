"""Rectified flow: the model learns the velocity from data to noise, and sampling follows it back.

The network's output is read as the clean clip, from which the velocity follows: a patch has 192 numbers, the model is
128 wide, and noise, unlike pictures, does not fit through a narrow place.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from sparsemoc.examples.train_dit.footage import CHANNELS, CONDITION, Clips
from sparsemoc.examples.train_dit.settings import Settings

Tensor = Any

HEAD_DIM = 32
#: Width of the text input, which is one token of zeros: the sample clips have no captions.
TEXT_DIM = 8
#: Times at which validation looks; 1 is pure noise.
TIMES = (0.3, 0.6, 0.9)
#: Training draws times from here to 1: where noise is weaker, the velocity divides a small error by a small time.
LEAST_TIME = 0.2
#: Wan's shift of times towards noise, where a clip is laid out: training meets it often, sampling goes slowly there.
SHIFT = 4.0


def make_model(settings: Settings) -> Any:
    """Return a WanTransformer3DModel with random weights, drawn from the seed."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(settings.seed)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=settings.heads,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS + CONDITION,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=settings.heads * HEAD_DIM * 4,
        num_layers=settings.layers,
        rope_max_seq_len=64,
    )
    torch.nn.init.zeros_(model.proj_out.weight)  # the first guess is grey, the mean of all pixels or near it
    return model


def shifted(u: Tensor) -> Tensor:
    """Return times in LEAST_TIME ... 1 of u in 0 ... 1: evenly spaced u give times that are denser near 1."""
    least = LEAST_TIME / (SHIFT - (SHIFT - 1) * LEAST_TIME)
    u = least + (1 - least) * u
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def velocity(model: Any, x: Tensor, condition: Tensor, t: Tensor) -> Tensor:
    """Return the velocity at x, (x - clean clip) / t, where the model says the clean clip.

    The condition goes in beside x, as Wan's image-to-video models take theirs.

    Args:
        model: the transformer.
        x: (batch, 48, frames, height, width), clips with noise.
        condition: (batch, 20, frames, height, width).
        t: (batch,) in 0 ... 1.
    """
    text = x.new_zeros(len(x), 1, TEXT_DIM)
    inputs = torch.cat([x, condition], dim=1)
    clean = model(hidden_states=inputs, timestep=1000 * t, encoder_hidden_states=text, return_dict=False)[0]
    return (x - clean) / _spread(t)


def loss(model: Any, clips: Clips, noise: Tensor, t: Tensor) -> Tensor:
    """Return the mean of (velocity(x_t, t) - (noise - x_0)) ** 2, where x_t = (1 - t) x_0 + t noise."""
    share = _spread(t)
    x = (1 - share) * clips.latents + share * noise
    return (velocity(model, x, clips.condition, t) - (noise - clips.latents)).square().mean()


def _spread(t: Tensor) -> Tensor:
    """Return (batch,) as (batch, 1, 1, 1, 1)."""
    return t[:, None, None, None, None]


@torch.no_grad()
def validation_loss(model: Any, clips: Clips, noise: Tensor) -> float:
    """Return the mean loss at the fixed TIMES with fixed noise; the model's mode is as it was afterwards."""
    training = model.training
    model.eval()
    times = [torch.full((len(noise),), t, device=noise.device) for t in TIMES]
    total = sum(float(loss(model, clips, noise, t)) for t in times)
    model.train(training)
    return total / len(TIMES)


@torch.no_grad()
def sample(model: Any, noise: Tensor, condition: Tensor, steps: int) -> Tensor:
    """Return latents: Euler steps along the velocity from noise at t = 1 to LEAST_TIME, and from there one to data."""
    model.eval()
    times = [*shifted(torch.linspace(1, 0, steps)).tolist(), 0.0]
    x = noise
    for t, following in pairwise(times):
        x = x - (t - following) * velocity(model, x, condition, torch.full((len(x),), t, device=x.device))
    return x
