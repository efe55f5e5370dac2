"""The step that merges partial results, as the backend's own call does it."""

from __future__ import annotations

from typing import Any
from unittest import mock

from bench.micro.ready import Ready, Step


def _triton(ready: Ready) -> Step:
    """Return the merge of the Triton backend."""
    from sparsemoc.backends.triton import forward

    return _launches(ready, forward)


def _cupy(ready: Ready) -> Step:
    """Return the merge of the CuPy backend."""
    from sparsemoc.backends.cupy import forward

    return _launches(ready, forward)


def _launches(ready: Ready, forward: Any) -> Step:
    """Return the launches of the merge, which fill out and lse, by slices of the call.

    The launches are taken from a call of attention, so that they get the partial results that it has made. `forward` is
    the module that launches.
    """
    whole = ready.step("attend")
    with mock.patch.object(forward, "launch_merge", wraps=forward.launch_merge) as seen:
        result = whole.call()
    given = [one.args for one in seen.call_args_list]
    for *_, out, lse in given:
        out[...] = float("nan")  # what is checked is what the launches below write
        lse[...] = float("nan")

    def merge(problem: Any, config: Any) -> Any:
        for arguments in given:
            forward.launch_merge(*arguments)
        return result

    return ready.step("attend", merge)


#: Backends that merge in a step of its own; the others keep running sums while they attend.
MERGES = {"triton": _triton, "cupy": _cupy}
