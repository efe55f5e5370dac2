"""What is required of one H100 or H200, bfloat16, head_dim 128: the one table of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The devices that the table speaks of; on others figures are shown and not judged.
DEVICES = re.compile(r"\bH[12]00\b")


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A bound on a figure, in every case in which a section measures it.

    Attributes:
        section: that measures it.
        figure: its name there.
        unit: of the bound.
        at_least, at_most: the bound, one of the two.
    """

    section: str
    figure: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        """Return whether a value keeps to the bound; NaN never does."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    @property
    def text(self) -> str:
        """The bound for a table."""
        bound = self.at_most if self.at_least is None else self.at_least
        return f"{'≤' if self.at_least is None else '≥'} {bound:g} {self.unit}"


def _at_least(section: str, figure: str, bound: float, unit: str) -> Requirement:
    return Requirement(section=section, figure=figure, unit=unit, at_least=bound)


def _at_most(section: str, figure: str, bound: float, unit: str) -> Requirement:
    return Requirement(section=section, figure=figure, unit=unit, at_most=bound)


#: "x dense" is the time of the best dense kernel on the machine over ours, "x default" that of the default over it.
REQUIREMENTS = (
    _at_most("flashmoba", "forward", 8.0, "ms"),
    _at_most("flashmoba", "forward and backward", 21.0, "ms"),
    _at_most("flashmoba", "deterministic", 1.25, "x default"),
    _at_least("paper", "forward", 4.7, "x dense"),
    _at_least("paper", "forward and backward", 4.0, "x dense"),
    _at_most("paper", "deterministic", 1.25, "x default"),
    _at_most("paper", "routing share", 5.0, "%"),
    _at_most("paper", "forward memory", 1.0, "GB"),
    _at_most("paper", "backward memory", 3.0, "GB"),
    *(
        _at_least("routed", f"forward, chunks of {chunk}", bound, "TFLOP/s")
        for chunk, bound in ((1024, 350.0), (512, 350.0), (256, 300.0), (128, 220.0), (64, 130.0))
    ),
    *(_at_least("routed", f"backward, chunks of {chunk}", 260.0, "TFLOP/s") for chunk in (1024, 512, 256)),
    _at_least("anchors", "forward", 95.0, "% of dense"),
    _at_least("short", "forward", 1.0, "x dense"),
    _at_least("short", "forward and backward", 1.0, "x dense"),
    _at_least("wan", "forward", 3.0, "x dense"),
)

_BY_NAME = {(one.section, one.figure): one for one in REQUIREMENTS}


def requirement(section: str, figure: str) -> Requirement | None:
    """Return what is required of a figure, or None."""
    return _BY_NAME.get((section, figure))


def judges(device: str) -> bool:
    """Return whether the table speaks of a device."""
    return DEVICES.search(device) is not None
