"""The seed of route dropout, where a model gives none."""

from __future__ import annotations

from typing import Any

import torch

from sparsemoc.spec.routing import RoutingSpec


def route_seed(spec: RoutingSpec, training: bool, device: torch.device) -> Any:
    """Return a seed from torch's generator of the device, or None where no route dropout applies.

    Activation checkpointing restores the state of that generator before it recomputes, so that the routes repeat. The
    seed is a 0-d int64 tensor that the host never reads: another one recompiles nothing.
    """
    if not training or spec.dropout is None:
        return None
    return torch.randint(0, 2**62, (), device=device)
