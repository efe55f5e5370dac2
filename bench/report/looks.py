"""Colours and marks of contenders: the same in every picture of a report, and told apart by the colour-blind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from bench.report.records import Record, is_problem

INK, FAINT, RULE = "#1b1b1f", "#5c5c66", "#8a8a94"
#: Two modes of one contender, and what is possible.
FORWARD, BACKWARD, IDEAL = "#0072B2", "#8CC4E8", "#1b1b1f"

#: The colours of Okabe and Ito: blues and green for ours, warm ones for dense peers, the others for sparse peers.
_OURS = (("#0072B2", "o"), ("#009E73", "P"), ("#56B4E9", "*"))
_DENSE = (("#D55E00", "s"), ("#E69F00", "D"), ("#8C4A1F", "p"), ("#F0A07A", "X"), ("#F0E442", "h"), ("#5A2A0A", "d"))
_SPARSE = (("#CC79A7", "^"), ("#7A5195", "v"), ("#5C5C66", "<"), ("#9A9A2E", ">"), ("#E3B5CD", "8"), ("#2B2B30", "H"))


class Look(NamedTuple):
    """Colour and mark."""

    colour: str
    mark: str

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of a plot."""
        return {"color": self.colour, "marker": self.mark, "markeredgecolor": "white", "markeredgewidth": 0.6}


class Looks:
    """The look of each contender of some records."""

    def __init__(self, records: Iterable[Record]) -> None:
        kinds: dict[str, str] = {}
        for record in records:
            if is_problem(record):
                kinds[record["contender"]] = "ours" if record["kind"] == "backend" else record["computes"]
            else:
                kinds.setdefault(record["backend"], "ours")
        self._looks: dict[str, Look] = {}
        for kind, sheet in (("ours", _OURS), ("dense", _DENSE), ("moc", _SPARSE)):
            names = sorted(name for name, is_of in kinds.items() if is_of == kind)
            self._looks |= {name: Look(*sheet[i % len(sheet)]) for i, name in enumerate(names)}
        self._kinds = kinds

    def __getitem__(self, contender: str) -> Look:
        return self._looks[contender]

    def label(self, contender: str) -> str:
        """Return its name in a legend: ours and dense ones are said to be."""
        kind = self._kinds[contender]
        return f"sparsemoc, {contender}" if kind == "ours" else f"{contender} (dense)" if kind == "dense" else contender

    def order(self, contenders: Iterable[str]) -> list[str]:
        """Return contenders, ours first, then dense ones."""
        places = list(self._looks)
        return sorted(set(contenders), key=places.index)
