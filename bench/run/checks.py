"""The check of a contender before it is timed: what it gave, against float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sparsemoc as moc
from bench import refcheck, refkeys
from bench.inputs import host
from bench.record import Setting
from bench.refcheck import Question, RefcheckError
from bench.run.contenders import Contender

#: Sampled queries; fewer of tiny streams, and of long ones, over which the oracle takes its time.
ROWS, FEW_ROWS, TINY, LONG = 32, 12, 2_000, 20_000
#: Heads that are looked at for each.
EACH = 2


def check(
    asked: Question, setting: Setting, layout: moc.Layout, one: Contender, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Check what a contender gave; what computes the pairs of a layout under the routes it took, or was given.

    Args:
        asked: the question, its arrays on the host.
        setting: what was computed.
        layout: the routes that were given.
        one: who computed it.
        given: arrays by name.

    Returns:
        The field `refcheck` of its record.

    Raises:
        RefcheckError: a result is wrong, or absent.
    """
    results = {name: host(array) for name, array in given.items()}
    _check_shapes(asked, setting, layout, results)
    rows = ROWS if TINY <= setting.problem.tokens <= LONG else FEW_ROWS
    by_query: dict[str, Any] = {name: results[name] for name in ("out", "lse", "dq") if name in results}
    if one.kind == "peer" and asked.dtype in ("float16", "bfloat16"):
        by_query.pop(
            "lse", None
        )  # float32 to us; what a kernel of torch keeps of it in half precision is its own matter
    if one.computes == "dense":
        told = refcheck.check_dense(asked, by_query, rows=rows)
    else:
        selected = results["selected"] if "selected" in results else layout.on_host().selected
        rounded = "float32" if one.kind == "backend" else asked.dtype
        told = refcheck.check(asked, selected, by_query, rows=rows, each=EACH, routes_as=rounded)
        if {"dk", "out", "lse"} <= set(results):
            told |= refkeys.check(asked, setting.plan, selected, results)
    if "dk" in results:
        told["identities"] = refkeys.check_identities(asked, results)
    return told


def _check_shapes(asked: Question, setting: Setting, layout: moc.Layout, results: Mapping[str, Any]) -> None:
    x, one = asked.inputs, setting.problem
    rows = 1, one.heads, one.queries
    shapes = {
        "out": x.d_out.shape, "dq": x.q.shape, "dk": x.k.shape, "dv": x.v.shape, "lse": rows,
        "selected": (*rows, layout.plan.slots),
    }  # fmt: skip
    wanted = {"route": ("selected",), "forward+backward": ("dq", "dk", "dv")}.get(setting.mode, ("out",))
    if absent := [name for name in wanted if name not in results]:
        raise RefcheckError(f"{asked.name}: {', '.join(absent)} is not given")
    for name, array in results.items():
        if tuple(array.shape) != tuple(shapes[name]):
            raise RefcheckError(f"{asked.name}: {name} has shape {tuple(array.shape)}, not {tuple(shapes[name])}")
