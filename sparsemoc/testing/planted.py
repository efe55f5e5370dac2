"""Planted wrong implementations: each has one fault, and names the property of the suite that must reject it.

A suite that accepts one of them proves nothing about a backend. A new kind of fault found in a backend is added here.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np

from sparsemoc.testing.oracle_implementation import OracleImplementation
from sparsemoc.testing.sample import Floats

#: Where the variants stand.
MODULES = ("planted_routing", "planted_dropout", "planted_attention", "planted_gradients")


class Planted(OracleImplementation):
    """A wrong implementation."""

    #: The property that must reject it.
    caught_by = "selection"


def shortened(x: Floats, bits: int) -> Floats:
    """Round numbers to `bits` bits of mantissa."""
    mantissa, exponent = np.frexp(x)
    short: Floats = np.ldexp(np.round(mantissa * 2.0**bits) * 2.0**-bits, exponent)
    return short


def variants() -> list[type[Planted]]:
    """Return every planted implementation; a class whose name starts with _ only serves others."""
    modules = [import_module(f"sparsemoc.testing.{name}") for name in MODULES]
    classes = [item for module in modules for item in vars(module).values() if isinstance(item, type)]
    return [
        item
        for item in classes
        if issubclass(item, Planted) and item.__module__ != __name__ and item.__name__[0] != "_"
    ]
