"""The section of FlashMoBA's own benchmark, beside dense attention and beside the composition that MoBA published."""

from __future__ import annotations

from typing import Any

import sparsemoc as moc
from bench.gpu import counts, settings, truth
from bench.gpu.clock import Call, usable
from bench.gpu.figures import OURS, ROUNDS, beside, checked, deterministic, gradients, speedup
from bench.gpu.report import Report
from bench.gpu.settings import Arrays, Setting
from bench.peers.composition import Composition
from bench.peers.router import Router

MOBA = "+ MoBA composition"


def flashmoba(report: Report) -> None:
    """Routing, forward and backward, and what determinism costs."""
    setting = settings.setting("flashmoba", report.setup)
    x = settings.arrays(setting, report.setup)
    layout, results = checked(report, setting, x)
    agrees = _moba_agrees(report, setting, x, layout, results)
    del results
    for mode in ("forward", "forward and backward"):
        more = usable(report, setting.name, _moba(setting, x, mode), peers=True) if agrees else {}
        if mode != "forward":
            call = {"+ deterministic": gradients(setting, x, "own", deterministic=True)}
            more |= usable(report, setting.name, call)
        found = beside(report, setting, x, mode, ROUNDS, more)
        best = found.best(our=True)
        assert best is not None, "our own engine refuses nothing here"
        detail = {"engine": best, "pairs": counts.pairs(layout)}
        report.figure(setting.name, mode, found.times.summary(best).median * 1e3, "ms", **detail)
        own = found.times.summary(f"{OURS}own").median
        report.figure(setting.name, f"{mode}, own anchors", own * 1e3, "ms")
        speedup(report, setting, f"{mode}, beside dense", found)
        if MOBA in more:
            ratio = found.times.ratio(MOBA, best).median
            report.figure(setting.name, f"{mode}, beside MoBA", ratio, "x MoBA composition")
        deterministic(report, setting, found)


def _moba(setting: Setting, x: Arrays, mode: str) -> dict[str, Call]:
    """Return the composition with its own routing: it routes, sorts and gathers in every call."""
    plan, heads, device = moc.plan(setting.spec), setting.heads, x.q.device.type
    routes, composed = Router(plan, heads, device), Composition(plan, setting.kv_heads or heads, device)

    def call() -> Any:
        selected = routes(x.q, x.k)
        return (
            composed.forward(*x.qkv, selected) if mode == "forward" else composed.gradients(*x.qkv, selected, x.d_out)
        )

    return {MOBA: call}


def _moba_agrees(report: Report, setting: Setting, x: Arrays, layout: moc.Layout, results: dict[str, Any]) -> bool:
    """Return whether the composition runs here and is right, given our routes; tell if it is not."""
    if not report.setup.cuda:
        report.skip(setting.name, "MoBA composition", "torch has variable-length flash attention on CUDA devices only")
        return False

    def check() -> None:
        selected = layout.selected[0].long()
        composed = Composition(layout.plan, setting.kv_heads or setting.heads, x.q.device.type)
        truth.check(setting, x, layout, {"out": composed.forward(*x.qkv, selected)[0]}, routes=False)
        grads = zip(("dq", "dk", "dv"), composed.gradients(*x.qkv, selected, x.d_out)[1:], strict=True)
        truth.check(setting, x, layout, results | dict(grads), routes=False)

    return bool(usable(report, setting.name, {"MoBA composition": check}, peers=True))
