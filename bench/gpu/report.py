"""Rows: what a section found, one JSON line each, as data that can cross to another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench.gpu.requirements import required
from bench.timing import Times

Row = dict[str, Any]

#: A check or a figure judged, a time, what was left out and why, and what broke.
KINDS = ("check", "figure", "time", "skip", "failure")


@dataclass(frozen=True)
class Setup:
    """How a section runs.

    Attributes:
        device: "cuda" or "cpu".
        quick: tiny sizes: the machinery is tried, figures mean nothing.
        judged: whether requirements apply to the device.
        backend: whose calls are measured.
    """

    device: str
    quick: bool
    judged: bool
    backend: str = "triton"

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"


def row(kind: str, section: str, case: str, name: str, **more: Any) -> Row:
    """Return a row with every field, those that do not apply None."""
    fields = dict.fromkeys(("value", "unit", "required", "met", "reason", "detail"))
    return {"kind": kind, "section": section, "case": case, "name": name, **fields, **more}


class Report:
    """What a section tells: each row leaves at once, so that nothing is lost where the section breaks later.

    Args:
        send: takes a row.
        section: its name.
        setup: how it runs.
    """

    def __init__(self, send: Callable[[Row], None], section: str, setup: Setup) -> None:
        self._send = send
        self._section = section
        self.setup = setup

    def check(self, case: str, name: str, met: bool, reason: str | None = None, **detail: Any) -> None:
        """Tell whether a check holds."""
        self._send(row("check", self._section, case, name, met=met, reason=reason, detail=detail))

    def figure(self, case: str, name: str, value: float, unit: str, **detail: Any) -> None:
        """Tell a figure, judged where something is required of it and the device is one that the table speaks of."""
        asked = required(self.setup.backend, self._section, name)
        for one in asked:
            if one.unit != unit:
                raise ValueError(f"{self._section}: {name} is required in {one.unit}, not in {unit}")
        now = [one.met(value) for one in asked if one.now]
        met = all(now) if now and self.setup.judged else None
        text = "; ".join(one.text for one in asked) or None
        judged = {"value": value, "unit": unit, "required": text, "met": met, "detail": detail}
        self._send(row("figure", self._section, case, name, **judged))

    def times(self, case: str, mode: str, times: Times) -> None:
        """Tell the time of everything that was timed side by side, in ms."""
        for name, seconds in times.seconds.items():
            quantiles = {key: value * 1e3 for key, value in asdict(times.summary(name)).items()}
            detail = {"mode": mode, "rounds": len(seconds), **quantiles}
            shown = {"value": quantiles["median"], "unit": "ms", "detail": detail}
            self._send(row("time", self._section, case, f"{mode}: {name}", **shown))

    def skip(self, case: str, name: str, reason: str) -> None:
        """Tell what was left out, and why."""
        self._send(row("skip", self._section, case, name, reason=reason))
