"""Mixture of Contexts in the video diffusion transformers of diffusers.

import sparsemoc as moc

handle = moc.diffusers.enable(pipe, moc.RoutingSpec(chunks=moc.Chunks(size=256), top_k=5), dense_steps=4)
frames = pipe("a cat").frames
handle.remove()
"""

from sparsemoc.adapters.diffusers.families import register_family
from sparsemoc.adapters.diffusers.family import Family, patches
from sparsemoc.adapters.diffusers.handle import Handle, enable
from sparsemoc.adapters.diffusers.processors import Processor

__all__ = ["Family", "Handle", "Processor", "enable", "patches", "register_family"]
