"""What is required of one H100 or H200, bfloat16, head_dim 128: the one table of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

#: The stage up to which requirements are judged: those of later ones are shown.
STAGE = 1
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
        backend: of which it is required.
        stage: from which on.
    """

    section: str
    figure: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    backend: str = "triton"
    stage: int = 1

    def met(self, value: float) -> bool:
        """Return whether a value keeps to the bound; NaN never does."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    @property
    def now(self) -> bool:
        """Whether it is judged."""
        return self.stage <= STAGE

    @property
    def text(self) -> str:
        """The bound for a table."""
        bound = self.at_most if self.at_least is None else self.at_least
        stage = "" if self.now else f" in stage {self.stage}"
        return f"{'≤' if self.at_least is None else '≥'} {bound:g} {self.unit}{stage}"


def _at_least(section: str, figure: str, bound: float, unit: str) -> Requirement:
    return Requirement(section=section, figure=figure, unit=unit, at_least=bound)


def _at_most(section: str, figure: str, bound: float, unit: str) -> Requirement:
    return Requirement(section=section, figure=figure, unit=unit, at_most=bound)


def _of_cupy(stage: int, *asked: Requirement) -> list[Requirement]:
    return [replace(one, backend="cupy", stage=stage) for one in asked]


#: Chunk sizes of the routed pairs, and what is measured of whole settings.
_CHUNKS, _MODES = (1024, 512, 256, 128, 64), ("forward", "forward and backward")

#: "x dense" is the time of the best dense kernel on the machine over ours, "x default" that of the default over it, "x
#: Triton" that of the Triton backend's own kernels over that of ours.
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
        for chunk, bound in zip(_CHUNKS, (350.0, 350.0, 300.0, 220.0, 130.0), strict=True)
    ),
    *(_at_least("routed", f"backward, chunks of {chunk}", 260.0, "TFLOP/s") for chunk in _CHUNKS[:3]),
    _at_least("anchors", "forward", 95.0, "% of dense"),
    _at_least("short", "forward", 1.0, "x dense"),
    _at_least("short", "forward and backward", 1.0, "x dense"),
    _at_least("wan", "forward", 3.0, "x dense"),
    *_of_cupy(
        1,
        *(_at_least("routed", f"forward, chunks of {chunk}", 280.0, "TFLOP/s") for chunk in _CHUNKS[:3]),
        _at_least("paper", "forward, own anchors", 3.2, "x dense"),
    ),
    *_of_cupy(
        2,
        *(
            _at_least("routed", f"forward, chunks of {chunk}", bound, "TFLOP/s")
            for chunk, bound in zip(_CHUNKS, (480.0, 480.0, 420.0, 330.0, 180.0), strict=True)
        ),
        *(_at_least("routed", f"backward, chunks of {chunk}", 380.0, "TFLOP/s") for chunk in _CHUNKS[:3]),
        _at_least("anchors", "forward, ours, own", 500.0, "TFLOP/s"),
        _at_most("flashmoba", "forward", 6.0, "ms"),
        _at_most("flashmoba", "forward and backward", 16.0, "ms"),
        _at_least("paper", "forward", 5.0, "x dense"),
        _at_least("paper", "forward and backward", 4.5, "x dense"),
        *(
            _at_least(section, f"{mode}, beside Triton", 1.0, "x Triton")
            for section in ("flashmoba", "paper", "short")
            for mode in _MODES
        ),
        _at_least("wan", "forward, beside Triton", 1.0, "x Triton"),
        *(_at_least("anchors", f"{mode}, beside Triton", 1.0, "x Triton") for mode in ("forward", "backward")),
        *(
            _at_least("routed", f"{mode}, chunks of {chunk}, beside Triton", 1.0, "x Triton")
            for mode in ("forward", "backward")
            for chunk in _CHUNKS
        ),
    ),
)


def required(backend: str, section: str, figure: str) -> list[Requirement]:
    """Return what is required of a figure of a backend, by stage."""
    asked = [one for one in REQUIREMENTS if (one.backend, one.section, one.figure) == (backend, section, figure)]
    return sorted(asked, key=lambda one: one.stage)


def judges(device: str) -> bool:
    """Return whether the table speaks of a device."""
    return DEVICES.search(device) is not None
