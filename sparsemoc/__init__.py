"""Mixture of Contexts attention: routing specs, block-index layouts, and backends that execute them.

    import numpy as np
    import sparsemoc as moc

    stream = moc.Stream.multishot(shots=4, frames=4, height=8, width=8, prompt=16)
    spec = moc.RoutingSpec(stream=stream, chunks=moc.Chunks(size=64), top_k=2, anchors=("text", "shot"))
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, stream.tokens, 2, 64), np.float32) for _ in range(3))
    out = moc.attention(q, k, v, spec)  # (batch, tokens, heads, head_dim), as q

Source: "Mixture of Contexts for Long Video Generation", arXiv 2508.21058.
"""

from typing import Any as _Any

from sparsemoc._version import __version__ as __version__
from sparsemoc.api import attend as attend
from sparsemoc.api import attention as attention
from sparsemoc.api import attention_grads as attention_grads
from sparsemoc.api import pool as pool
from sparsemoc.api import route as route
from sparsemoc.backends import Backend as Backend
from sparsemoc.backends import Options as Options
from sparsemoc.backends import Result as Result
from sparsemoc.backends import available_backends as available_backends
from sparsemoc.spec import Block as Block
from sparsemoc.spec import Chunks as Chunks
from sparsemoc.spec import Layout as Layout
from sparsemoc.spec import LayoutError as LayoutError
from sparsemoc.spec import Plan as Plan
from sparsemoc.spec import RouteDropout as RouteDropout
from sparsemoc.spec import RoutingSpec as RoutingSpec
from sparsemoc.spec import Segment as Segment
from sparsemoc.spec import ShapeError as ShapeError
from sparsemoc.spec import SparsemocError as SparsemocError
from sparsemoc.spec import SpecError as SpecError
from sparsemoc.spec import Stream as Stream
from sparsemoc.spec import UnsupportedError as UnsupportedError
from sparsemoc.spec import first as first
from sparsemoc.spec import load_spec as load_spec
from sparsemoc.spec import plan as plan
from sparsemoc.spec import window as window
from sparsemoc.tuning.session import tune as tune

#: Parts that load other libraries, and so are imported when first asked for.
_PARTS = ("diffusers", "jax", "torch", "training", "transformers")


def __getattr__(name: str) -> _Any:
    if name in _PARTS:
        from importlib import import_module

        return import_module(f"sparsemoc.{name}")
    raise AttributeError(f"module 'sparsemoc' has no attribute {name!r}")
