"""The settings: what is computed, at full size, and tiny for --quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sparsemoc as moc
from bench.gpu.report import Setup


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A problem of batch 1.

    Attributes:
        name: of the case in rows.
        spec: with its stream.
        heads, kv_heads, head_dim: sizes; kv_heads 0 for as many as heads.
        backend: whose calls are measured.
    """

    name: str
    spec: moc.RoutingSpec
    heads: int
    kv_heads: int = 0
    head_dim: int = 128
    backend: str = "triton"

    @property
    def stream(self) -> moc.Stream:
        """The tokens."""
        assert self.spec.stream is not None, "every setting has one"
        return self.spec.stream

    @property
    def tokens(self) -> int:
        """Their number."""
        return self.stream.tokens

    @property
    def causal(self) -> bool:
        """Whether no query sees a later key, so that dense attention is causal too."""
        return self.spec.causal == "token"


@dataclass(frozen=True, eq=False)
class Arrays:
    """Torch tensors of a call, (batch, tokens, heads, head_dim): independent normal numbers."""

    q: Any
    k: Any
    v: Any
    d_out: Any

    @property
    def qkv(self) -> tuple[Any, Any, Any]:
        """The inputs."""
        return self.q, self.k, self.v


def arrays(setting: Setting, setup: Setup, batch: int = 1, seed: int = 0) -> Arrays:
    """Return the arrays of a setting: bfloat16 on a GPU; float32 on the CPU, whose interpreter has no other."""
    import torch

    random = torch.Generator(setup.device).manual_seed(seed)
    dtype = torch.bfloat16 if setup.cuda else torch.float32

    def normal(heads: int) -> Any:
        shape = (batch, setting.tokens, heads, setting.head_dim)
        return torch.randn(shape, generator=random, device=setup.device, dtype=dtype)

    heads = setting.heads, setting.kv_heads or setting.heads
    return Arrays(normal(heads[0]), normal(heads[1]), normal(heads[1]), normal(heads[0]))


def _one(tokens: int) -> moc.Stream:
    return moc.Stream((moc.Segment("video", tokens),))


def _flashmoba(quick: bool) -> Setting:
    tokens, chunk, top_k = (128, 16, 3) if quick else (65_536, 128, 7)
    spec = moc.RoutingSpec(
        stream=_one(tokens), chunks=moc.Chunks(size=chunk), top_k=top_k, anchors=("chunk",), causal="token"
    )
    return Setting(name="flashmoba", spec=spec, heads=1 if quick else 32, head_dim=16 if quick else 128)


def _paper(quick: bool) -> Setting:
    if quick:
        stream, chunk, top_k = moc.Stream.multishot(3, 2, 3, 6, caption=3, prompt=5), 16, 2
    else:
        stream, chunk, top_k = moc.Stream.multishot(8, 16, 30, 47, caption=77, prompt=226), 1280, 5
    spec = moc.RoutingSpec(
        stream=stream, chunks=moc.Chunks(size=chunk), top_k=top_k, anchors=("text", "shot"), causal="chunk"
    )
    return Setting(name="paper", spec=spec, heads=1 if quick else 24, head_dim=16 if quick else 128)


def _wan(quick: bool) -> Setting:
    grid = (5, 4, 6) if quick else (21, 45, 80)
    stream = moc.Stream((moc.Segment("video", grid=grid),))
    chunks = moc.Chunks(size=grid[1] * grid[2])  # one frame
    spec = moc.RoutingSpec(stream=stream, chunks=chunks, top_k=3, anchors=("frame",))
    return Setting(name="wan", spec=spec, heads=1 if quick else 40, head_dim=16 if quick else 128)


def _short(quick: bool) -> Setting:
    grid, chunk = ((3, 5, 6), 16) if quick else ((7, 30, 30), 256)
    stream = moc.Stream((moc.Segment("video", grid=grid),))
    spec = moc.RoutingSpec(stream=stream, chunks=moc.Chunks(size=chunk), top_k=3, anchors=("chunk",))
    return Setting(name="short", spec=spec, heads=1 if quick else 24, head_dim=16 if quick else 128)


_BY_NAME = {"flashmoba": _flashmoba, "paper": _paper, "wan": _wan, "short": _short}
NAMES = tuple(_BY_NAME)


def setting(name: str, setup: Setup) -> Setting:
    """Return the setting of one of `NAMES`."""
    return replace(_BY_NAME[name](setup.quick), backend=setup.backend)


def routed(tokens: int, chunk: int, setup: Setup) -> Setting:
    """Return the setting of routes alone: no anchors, eight chunks to a query."""
    top_k, heads, head_dim = (2, 1, 16) if setup.quick else (8, 24, 128)
    spec = moc.RoutingSpec(stream=_one(tokens), chunks=moc.Chunks(size=chunk), top_k=top_k, anchors=())
    return Setting(name=f"{tokens:,} tokens", spec=spec, heads=heads, head_dim=head_dim, backend=setup.backend)


def shots(setup: Setup) -> Setting:
    """Return the setting of anchors alone: shots of equal length, each a dense attention, no routes."""
    count, tokens, heads, head_dim = (3, 40, 1, 16) if setup.quick else (8, 22_560, 24, 128)
    stream = moc.Stream(tuple(moc.Segment("video", tokens, shot=shot) for shot in range(count)))
    spec = moc.RoutingSpec(stream=stream, chunks=moc.Chunks(size=None), top_k=0, anchors=("shot",))
    name = f"{count} x {tokens:,} tokens"
    return Setting(name=name, spec=spec, heads=heads, head_dim=head_dim, backend=setup.backend)


def small(setup: Setup) -> tuple[Setting, ...]:
    """Return the settings of exact comparisons: the parts of the kernels, at sizes of which many calls are cheap."""
    return tuple(replace(one, backend=setup.backend) for one in _small(setup.quick))


def _small(quick: bool) -> tuple[Setting, ...]:
    heads, dim = (2, 16) if quick else (8, 128)
    shape, sizes = ((2, 1, 3, 5, 2, 3), (7, 16, 12)) if quick else ((4, 4, 15, 17, 20, 50), (100, 128, 96))
    multishot = moc.Stream.multishot(*shape)
    grid = moc.Stream((moc.Segment("text", shape[5]), moc.Segment("video", grid=(shape[0], *shape[2:4]))))
    return (
        Setting(
            name="shots",
            spec=moc.RoutingSpec(
                stream=multishot, chunks=moc.Chunks(size=sizes[0]), top_k=4, anchors=("text", "shot"), causal="chunk"
            ),
            heads=heads, kv_heads=heads // 2, head_dim=dim,
        ),
        Setting(
            name="token causal",
            spec=moc.RoutingSpec(
                stream=_one(5 * sizes[1] + 3), chunks=moc.Chunks(size=sizes[1]), top_k=2,
                anchors=("chunk", moc.window(3)), causal="token",
            ),
            heads=heads, head_dim=dim,
        ),
        Setting(
            name="blocks",
            spec=moc.RoutingSpec(
                stream=grid, chunks=moc.Chunks(size=sizes[2]), top_k=2, anchors=("text", "chunk"), unit=moc.Block(64)
            ),
            heads=heads, head_dim=dim,
        ),
    )  # fmt: skip
