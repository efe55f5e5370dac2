"""Which chunks a run of queries may take: routable, causal, and not covered whole by its anchors."""

from __future__ import annotations

from sparsemoc.backends.cupy.machine import Machine, kernel
from sparsemoc.backends.planning.geometry import Geometry, Keys, Runs
from sparsemoc.backends.planning.reach import Candidates, Near
from sparsemoc.backends.protocol import Array

FIND_CANDIDATES = kernel("candidates", "find_candidates")
#: Mask words to a block: a warp makes one, of 32 chunks.
_WORDS = FIND_CANDIDATES.threads // 32


def candidates(geometry: Geometry, keys: Keys, runs: Runs, reached: Near, stops: Array, machine: Machine) -> Candidates:
    """Return the candidates of every run for the valid keys of a call.

    Args:
        geometry: the tables on the host.
        keys, runs, reached: those that the kernel reads, on the device.
        stops: int32 (batch or 1, chunks), end of the valid keys of each chunk, on the device.
        machine: whose arrays these are.
    """
    batch, (count, words), near = stops.shape[0], geometry.runs.allowed.shape, reached.width
    bits, first, last = (machine.empty((batch, count, width), "int32") for width in (words, near, near))
    shared = batch == 1
    machine.launch(
        FIND_CANDIDATES, (count, -(-words // _WORDS), batch),
        chunk_lo=keys.chunk_lo, stops=stops, anchor_ptr=runs.anchor_ptr, anchor_lo=runs.anchor_lo,
        anchor_hi=runs.anchor_hi, allowed=runs.allowed, near_first=reached.first, bits=bits, first=first, last=last,
        stride_stops=0 if shared else geometry.chunks, chunks=geometry.chunks, words=words, near=near,
    )  # fmt: skip
    return Candidates(bits, first, last, *(0, 0) if shared else (count * words, count * near))
