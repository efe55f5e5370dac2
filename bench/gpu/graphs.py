"""The section on CUDA graphs: a captured call replays with other inputs, and nothing in a call waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sparsemoc as moc
from bench.gpu import settings
from bench.gpu.clock import captured, wait
from bench.gpu.exact import compare
from bench.gpu.report import Report
from bench.gpu.settings import Setting
from bench.peers.peer import first_line

#: q, k, v, d_out and key_lengths.
Inputs = list[Any]
Call = Callable[[Inputs], dict[str, Any]]


def graphs(report: Report) -> None:
    """Capture calls, replay them with other inputs, compare with eager calls; look for synchronisation."""
    if not report.setup.cuda:
        report.skip("all", "graphs", "there is no CUDA device: nothing to capture or to wait for")
        return
    for setting in settings.small(report.setup):
        first, second = (_inputs(setting, report, seed) for seed in (1, 2))
        for name, call in _calls(setting).items():
            for what, check in (("replay as eager", _replays), ("no host synchronisation", _never_waits)):
                case = f"{setting.name}: {name}"
                try:
                    check(report, case, what, call, first, second)
                except Exception as error:  # noqa: BLE001  the others are still tried
                    report.check(case, what, False, first_line(error))


def _inputs(setting: Setting, report: Report, seed: int) -> Inputs:
    """Return arrays of batch 2, and lengths that leave out some tokens of each segment."""
    import torch

    x = settings.arrays(setting, report.setup, batch=2, seed=seed)
    tokens = torch.tensor([[segment.tokens for segment in setting.stream.segments]] * 2, device=x.q.device)
    random = torch.Generator(x.q.device).manual_seed(seed)
    kept = torch.rand(tokens.shape, generator=random, device=x.q.device) / 2 + 0.5
    return [*x.qkv, x.d_out, (kept * tokens).to(torch.int32)]


def _calls(setting: Setting) -> dict[str, Call]:
    """Return what is captured: only results that are the same from run to run."""

    def forward(inputs: Inputs, padded: bool) -> dict[str, Any]:
        q, k, v, _, lengths = inputs
        out, lse = moc.attention(
            q, k, v, setting.spec, key_lengths=lengths if padded else None, deterministic=False,
            backend=setting.backend, return_lse=True,
        )  # fmt: skip
        return {"out": out, "lse": lse}

    def gradients(inputs: Inputs, padded: bool, deterministic: bool = True) -> dict[str, Any]:
        q, k, v, d_out, lengths = inputs
        dq, dk, dv = moc.attention_grads(
            q, k, v, setting.spec, d_out, key_lengths=lengths if padded else None, deterministic=deterministic,
            backend=setting.backend,
        )  # fmt: skip
        # By default dq is summed in no fixed order.
        return {"dq": dq, "dk": dk, "dv": dv} if deterministic else {"dk": dk, "dv": dv}

    return {
        "forward": lambda inputs: forward(inputs, False),
        "forward, padded": lambda inputs: forward(inputs, True),
        "forward and backward": lambda inputs: gradients(inputs, False),
        "forward and backward, dq in any order": lambda inputs: gradients(inputs, False, deterministic=False),
        "forward and backward, padded": lambda inputs: gradients(inputs, True),
    }


def _replays(report: Report, case: str, what: str, call: Call, first: Inputs, second: Inputs) -> None:
    """Capture with one set of inputs, replay with another, and compare with an eager call on that."""
    held = [array.clone() for array in first]
    graph, results = captured(lambda: call(held))
    for target, source in zip(held, second, strict=True):
        target.copy_(source)
    graph.replay()
    wait(report.setup)
    compare(report, case, what, results, call(second))


def _never_waits(report: Report, case: str, what: str, call: Call, first: Inputs, second: Inputs) -> None:
    """Call again where torch raises an error at whatever waits for the device."""
    import torch

    call(first)
    wait(report.setup)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(second)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wait(report.setup)
    report.check(case, what, True)
