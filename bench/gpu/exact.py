"""Sections that compare: the conformance suite on the device, and deterministic results bit by bit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import sparsemoc as moc
from bench.gpu import settings
from bench.gpu.report import Report
from bench.gpu.settings import Arrays, Setting

#: Most examples of a property, and with --quick.
EXAMPLES, QUICK_EXAMPLES = 200, 1
#: Calls that must agree.
REPEATS = 3

Check = Callable[..., None]


class Limited:
    """A check of the conformance suite that looks at no more problems once its time is over.

    Args:
        check: of a `conformance.Property`.
        seconds: for all problems together; the first is looked at in any case.
    """

    def __init__(self, check: Check, seconds: float) -> None:
        self._check = check
        self._end = time.monotonic() + seconds
        self.done = 0

    def __call__(self, implementation: Any, problem: Any) -> None:
        """Check a problem, or let it pass unseen."""
        if self.done and time.monotonic() > self._end:
            return
        self._check(implementation, problem)
        self.done += 1


def conformance(report: Report, names: Sequence[str], seconds: float) -> None:
    """Try properties of the conformance suite on the device, each for some seconds."""
    from sparsemoc.testing.conformance import PROPERTIES

    examples = QUICK_EXAMPLES if report.setup.quick else EXAMPLES
    for name in names:
        limited = Limited(PROPERTIES[name].check, seconds)
        limited_property = dataclasses.replace(PROPERTIES[name], check=limited)
        met, reason = True, None
        try:
            limited_property.run(
                report.setup.backend, examples=examples, shrink=False, framework="torch", device=report.setup.device
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  whatever it is, the property does not hold
            met, reason = False, " ".join([str(error).strip(), *getattr(error, "__notes__", ())])
        report.check("conformance", name, met, reason, problems=limited.done)


def determinism(report: Report) -> None:
    """Compare bit by bit: the same call again, batch rows in another order, and each batch row alone."""
    for setting in settings.small(report.setup):
        x = settings.arrays(setting, report.setup, batch=3)
        first = _everything(setting, x)
        for repeat in range(1, REPEATS):
            compare(report, setting.name, f"run {repeat + 1} as run 1", _everything(setting, x), first)
        order = [2, 0, 1]
        turned = _everything(setting, _rows(x, order))
        compare(report, setting.name, "batch rows in another order", turned, {n: y[order] for n, y in first.items()})
        for row in range(3):
            alone = _everything(setting, _rows(x, [row]))
            compare(report, setting.name, f"batch row {row} alone", alone, {n: y[[row]] for n, y in first.items()})


def _everything(setting: Setting, x: Arrays) -> dict[str, Any]:
    """Return all results of deterministic calls, by name."""
    out, lse, layout = moc.attention(
        *x.qkv, setting.spec, deterministic=True, backend=setting.backend, return_lse=True, return_layout=True
    )
    dq, dk, dv = moc.attention_grads(*x.qkv, setting.spec, x.d_out, deterministic=True, backend=setting.backend)
    return {"selected": layout.selected, "out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


def _rows(x: Arrays, rows: list[int]) -> Arrays:
    return Arrays(*(array[rows] for array in (*x.qkv, x.d_out)))


def compare(report: Report, case: str, name: str, got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Tell which results differ in any bit; -0 and 0 are not told apart, and NaN equals nothing."""
    import torch

    unlike = [part for part in wanted if not torch.equal(got[part], wanted[part])]
    reason = f"{', '.join(unlike)} differ" if unlike else None
    report.check(case, name, not unlike, reason, results=list(wanted))
