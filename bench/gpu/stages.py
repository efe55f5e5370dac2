"""The section that says where time goes: the public stages by events, and every kernel by the profiler."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sparsemoc as moc
from bench.gpu import peers, settings
from bench.gpu.clock import Call, interleaved, wait
from bench.gpu.figures import gradients
from bench.gpu.report import Report
from bench.gpu.settings import Arrays, Setting
from bench.peers.peer import first_line

#: Which stage a kernel belongs to, by the start of its name, the longest that fits; others are shown as "other".
STAGES = {
    "pool": "pool",
    "pool_units": "route",
    "split": "route",
    "route": "route",
    "candidates_kernel": "route",
    "find_": "route",
    "drop_": "route",
    "count_": "index",
    "scan_counts": "index",
    "place_": "index",
    "tile_starts": "index",
    "split_starts": "index",
    "attend_anchors": "anchors",
    "attend_routed": "routed",
    "clear_places": "merge",
    "merge": "merge",
    "row_constants": "backward: rows",
    "grads": "backward: keys",
    "key_grads": "backward: keys",
    "join_segments": "backward: keys",
    "anchor_query_grads": "backward: queries",
    "routed_query_grads": "backward: queries",
    "join_query_grads": "backward: queries",
}
#: Calls that the profiler sees, and kernels that a row names.
CALLS, MOST_KERNELS = 3, 20
ROUNDS = 5


def stages(report: Report) -> None:
    """Tell the stages of the paper's setting and of FlashMoBA's."""
    for name in ("paper", "flashmoba"):
        setting = settings.setting(name, report.setup)
        x = settings.arrays(setting, report.setup)
        report.times(name, "stage", interleaved(public(setting, x), ROUNDS, report.setup))
        if not report.setup.cuda:
            report.skip(name, "kernels", "there is no CUDA device to profile")
            continue
        for mode, deterministic in (("default", False), ("deterministic", True)):
            try:
                found = _profiled(gradients(setting, x, "own", deterministic), report)
            except Exception as error:  # noqa: BLE001  a profiler may be forbidden or absent: the events stand
                report.skip(name, f"kernels, {mode}", first_line(error))
            else:
                _tell(report, name, mode, found)


def public(setting: Setting, x: Arrays) -> dict[str, Call]:
    """Return the stages that the public functions tell apart, warmed up."""
    plan = moc.plan(setting.spec)
    centroids = moc.pool(x.k, plan, backend=setting.backend)
    layout = moc.route(x.q, x.k, setting.spec, backend=setting.backend)
    calls: dict[str, Call] = {
        "pool": lambda: moc.pool(x.k, plan, backend=setting.backend),
        "route": lambda: moc.route(x.q, None, setting.spec, centroids=centroids, backend=setting.backend),
        "attend": lambda: moc.attend(*x.qkv, layout, backend=setting.backend),
    }
    for call in calls.values():
        call()
    return calls | {"backward": peers.backward(lambda q, k, v: moc.attend(q, k, v, layout, backend=setting.backend), x)}


def _profiled(call: Call, report: Report) -> dict[str, tuple[float, int]]:
    """Return ms and launches of each kernel, for one call."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    wait(report.setup)
    profiler: Any
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            call()
        wait(report.setup)
    found = {
        event.key: (event.self_device_time_total / CALLS / 1e3, event.count // CALLS)
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CUDA and event.self_device_time_total > 0
    }
    if not found:
        raise RuntimeError("the profiler saw no kernel")
    return found


def stage_of(kernel: str) -> str:
    """Return the stage of a kernel by its name."""
    known = [name for name in STAGES if kernel.startswith(name)]
    return STAGES[max(known, key=len)] if known else "other"


def _tell(report: Report, case: str, mode: str, found: dict[str, tuple[float, int]]) -> None:
    """Tell the time of every stage, with its kernels, and its share of all kernels."""
    kernels: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, (milliseconds, launches) in sorted(found.items(), key=lambda item: -item[1][0]):
        kernels[stage_of(name)][name] = {"ms": milliseconds, "launches": launches}
    total = sum(milliseconds for milliseconds, _ in found.values())
    for stage, ones in kernels.items():
        spent = sum(one["ms"] for one in ones.values())
        shown = dict(list(ones.items())[:MOST_KERNELS])
        report.figure(case, f"kernels, {mode}: {stage}", spent, "ms", share=spent / total, kernels=shown)
