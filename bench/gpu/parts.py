"""Sections of one part alone: routes without anchors, anchors without routes."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import sparsemoc as moc
from bench.gpu import counts, peers, settings, truth
from bench.gpu.clock import Call, interleaved, usable
from bench.gpu.figures import OURS, ROUNDS, TRITON, Beside, compare, engines, providers, rival, rivalry
from bench.gpu.report import Report, Setup
from bench.gpu.settings import Arrays, Setting
from bench.peers.composition import Composition

#: Tokens and chunk sizes of the routed pairs.
TOKENS, CHUNKS = (65_536, 181_322), (1024, 512, 256, 128, 64)
QUICK_TOKENS, QUICK_CHUNKS = (96, 70), (16,)
#: Chunk sizes and tokens at which the composition that MoBA published is timed too.
MOBA_CHUNKS, MOBA_TOKENS = (512, 128), 65_536


def attend(setting: Setting, x: Arrays, layout: moc.Layout, engine: str = "own") -> Call:
    """Return the call of attend: everything but routing."""
    options = moc.Options(anchors=engine)
    return lambda: moc.attend(*x.qkv, layout, deterministic=False, backend=setting.backend, options=options)


def backward(setting: Setting, x: Arrays, layout: moc.Layout) -> Call:
    """Return the call of the backward alone, of a forward that is done here."""
    return peers.backward(lambda q, k, v: moc.attend(q, k, v, layout, deterministic=False, backend=setting.backend), x)


def routed_settings(setup: Setup) -> list[Setting]:
    """Return the settings of routes alone, the longest chunks first."""
    chunks, tokens = (QUICK_CHUNKS, QUICK_TOKENS) if setup.quick else (CHUNKS, TOKENS)
    return [settings.routed(count, chunk, setup) for chunk in chunks for count in tokens]


def routed(report: Report) -> None:
    """Attend and merge a fixed layout of random routes, forward and backward."""
    for setting in routed_settings(report.setup):
        x = settings.arrays(setting, report.setup)
        layout = counts.random_layout(setting, report.setup)
        _routed(report, setting, x, layout)
        del x, layout
        gc.collect()


def _routed(report: Report, setting: Setting, x: Arrays, layout: moc.Layout) -> None:
    chunk, kept = setting.spec.chunks.size, counts.pairs(layout)
    _check(report, setting, x, layout, f"chunks of {chunk}: float64 on sampled rows")
    modes = {"forward": attend, "backward": backward}
    calls = {name: make(setting, x, layout) for name, make in modes.items()}
    for name, make in modes.items():
        other = rival(report, setting, partial(make, x=x, layout=layout))
        calls |= {f"{rival_name} {name}": call for rival_name, call in other.items()}
    if chunk in MOBA_CHUNKS and setting.tokens == MOBA_TOKENS:
        calls |= _moba(report, setting, x, layout)
    times = interleaved(calls, ROUNDS, report.setup)
    report.times(setting.name, f"chunks of {chunk}", times)
    for name, products in (("forward", counts.FORWARD), ("backward", counts.BACKWARD)):
        rate = counts.flops(kept, setting.head_dim, products) / times.summary(name).median / 1e12
        report.figure(setting.name, f"{name}, chunks of {chunk}", rate, "TFLOP/s", pairs=kept)
        rivalry(report, setting, f"{name}, chunks of {chunk}", times, name, f"{TRITON} {name}")
    if "MoBA composition" in calls:
        ratio = times.ratio("MoBA composition", "forward").median
        report.figure(setting.name, f"forward, chunks of {chunk}, beside MoBA", ratio, "x MoBA composition")


def _moba(report: Report, setting: Setting, x: Arrays, layout: moc.Layout) -> dict[str, Call]:
    """Return the composition that MoBA published, if it runs here and is right."""
    name = "MoBA composition"

    composed = Composition(layout.plan, setting.kv_heads or setting.heads, x.q.device.type)

    def call() -> Any:
        return composed.forward(*x.qkv, layout.selected[0].long())[0]

    def check() -> None:
        truth.check(setting, x, layout, {"out": call()}, routes=False)

    return {name: call} if usable(report, setting.name, {name: check}, peers=True) else {}


def _check(report: Report, setting: Setting, x: Arrays, layout: moc.Layout, name: str) -> None:
    """Hold out, lse, dq, dk and dv of a given layout against float64."""
    import torch

    q, k, v = leaves = [array.detach().requires_grad_() for array in x.qkv]
    out, lse = moc.attend(q, k, v, layout, deterministic=False, backend=setting.backend, return_lse=True)
    grads = zip(("dq", "dk", "dv"), torch.autograd.grad(out, leaves, x.d_out), strict=True)
    compare(report, setting, x, layout, {"out": out.detach(), "lse": lse.detach(), **dict(grads)}, name)


def anchors(report: Report) -> None:
    """Attend shots of equal length to themselves, beside dense kernels with the shots as a batch."""
    setting = settings.shots(report.setup)
    x = settings.arrays(setting, report.setup)
    layout = moc.route(x.q, x.k, setting.spec, backend=setting.backend)
    _check(report, setting, x, layout, "float64 on sampled rows")
    providers(report, setting, x, layout)
    count = len(setting.stream.segments)
    batch = Arrays(*(array.unflatten(1, (count, -1))[0] for array in (*x.qkv, x.d_out)))
    dense = peers.dense(False, report.setup)
    sides = {
        "forward": (
            {f"{OURS}{engine}": attend(setting, x, layout, engine) for engine in engines(setting)},
            {name: peers.forward(kernel, batch) for name, kernel in dense.items()},
            counts.FORWARD,
        ),
        "backward": (
            {f"{OURS}own": backward(setting, x, layout)},
            _backwards(report, setting, dense, batch),
            counts.BACKWARD,
        ),
    }
    for mode, (own, others, products) in sides.items():
        calls = usable(report, setting.name, own) | usable(report, setting.name, others, peers=True)
        make = attend if mode == "forward" else backward
        calls |= rival(report, setting, partial(make, x=x, layout=layout))
        found = Beside(interleaved(calls, ROUNDS, report.setup))
        report.times(setting.name, mode, found.times)
        rivalry(report, setting, mode, found.times, f"{OURS}own", TRITON)
        _shares(report, setting, mode, found, counts.flops(counts.pairs(layout), setting.head_dim, products))


def _backwards(report: Report, setting: Setting, dense: dict[str, Any], batch: Arrays) -> dict[str, Call]:
    """Return the backward of every dense kernel that runs here: each needs a forward of its own first."""
    found: dict[str, Call] = {}
    for name, kernel in dense.items():
        ready = usable(report, setting.name, {name: peers.gradients(kernel, batch)}, peers=True)
        found |= {name: peers.backward(kernel, batch) for name in ready}
    return found


def _shares(report: Report, setting: Setting, mode: str, found: Beside, useful: int) -> None:
    """Tell the rates, and how near the best dense kernel the best engine and our own come."""
    for name in found.times.seconds:
        rate = useful / found.times.summary(name).median / 1e12
        report.figure(setting.name, f"{mode}, {name}", rate, "TFLOP/s")
    dense, best = found.best(our=False), found.best(our=True)
    if dense is None or best is None:
        report.skip(setting.name, mode, "no dense kernel ran on this machine" if best else "no engine ran")
        return
    for name, told in ((best, mode), (f"{OURS}own", f"{mode}, own engine")):
        share = found.times.ratio(dense, name).median * 100
        report.figure(setting.name, told, share, "% of dense", engine=name, dense=dense)
