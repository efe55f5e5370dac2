"""Attentions of others: any installed distribution joins, or any module by name, with the same data.

A peer is a function that is given a `Call` and returns what is to be timed. It need not import anything of ours:

    def my_kernel(call):                      # in module my_package.bench
        q, k, v, d_out = call.tensors()       # torch, (1, tokens, heads, head_dim); call.arrays() gives NumPy
        if call.mode != "attend":
            raise NotImplementedError("takes a layout, and has no backward")
        bounds = call.plan.samples[0].chunk_bounds
        return lambda: {"out": my_attention(q, k, v, call.layout.selected, bounds, call.scale)}

`python -m bench.run --peer my_package.bench:my_kernel` runs it; or the distribution names it once for all:

    [project.entry-points."sparsemoc.bench.peers"]
    mine = "my_package.bench:my_kernel"

`call.mode` says what is timed: "route" (gives "selected"), "attend" (`call.layout` is given, gives "out"), "forward"
(routes by itself: gives "out" and "selected") and "forward+backward" (gives "dq", "dk", "dv" too). An array alone
counts as "out", or "selected" in "route". What is done before the function returns is not timed. It computes the pairs
of the layout, unless `my_kernel.computes = "dense"`. Results are checked before a time is written; whatever is raised
becomes the reason why there is none.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import sparsemoc as moc
from bench.inputs import Inputs, Mode
from bench.peers.call import Call
from bench.peers.peer import Computes, Outputs, Peer, Unavailable, first_line, guarded
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.tuning.problems import NamedProblem

#: Entry-point group; each entry is a name and "module:function".
GROUP = "sparsemoc.bench.peers"

#: Gives the peers of a problem.
Source = Callable[[NamedProblem, moc.Plan, moc.Layout, Inputs, Mode], Iterator[Peer]]


def peers(call: Call) -> Iterator[Peer]:
    """Yield the peers that installed distributions bring."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        yield _peer(entry.name, entry.load, call)


def loaded(text: str) -> Source:
    """Return the source of the one peer that `--peer` names; its module is imported when it is asked.

    Raises:
        SpecError: the text is not "module:function".
    """
    module, _, function = text.partition(":")
    if not (module and function):
        raise SpecError(f'--peer must be "module:function", got {describe(text)}. Hint: my_package.bench:my_kernel.')

    def load() -> Any:
        return getattr(importlib.import_module(module), function)

    def source(problem: NamedProblem, plan: moc.Plan, layout: moc.Layout, inputs: Inputs, mode: Mode) -> Iterator[Peer]:
        call = Call(problem=problem, plan=plan, layout=layout, inputs=inputs, mode=mode)
        yield guarded(_peer(text, load, call), inputs.device)

    return source


def _peer(name: str, load: Callable[[], Any], call: Call) -> Peer:
    """Return a peer of others; one that cannot be loaded says why when it is prepared."""
    computes: Computes = "moc"
    try:
        make = load()
        if not callable(make):
            raise TypeError(f"its entry gives {describe(make)}, which is no function")
        if getattr(make, "computes", "moc") == "dense":
            computes = "dense"
    except (Exception, SystemExit) as error:  # noqa: BLE001  a broken package must not break the run
        make = partial(_unavailable, first_line(error))
    pairs = 0 if call.mode == "route" else call.dense_pairs if computes == "dense" else call.pairs
    given = call if call.mode == "attend" else dataclasses.replace(call, layout=None)
    return Peer(
        name=name,
        computes=computes,
        flops=call.flops(pairs),
        note="of another package",
        prepare=lambda: _named(make(given), call.mode),
    )


def _unavailable(reason: str, call: Call) -> Any:
    raise Unavailable(reason)


def _named(timed: Any, mode: Mode) -> Callable[[], Outputs]:
    """Return a call that gives its results by name."""
    if not callable(timed):
        raise TypeError(f"it must return the function to be timed, got {describe(timed)}")

    def call() -> Outputs:
        found = timed()
        return found if isinstance(found, Mapping) else {"selected" if mode == "route" else "out": found}

    return call
