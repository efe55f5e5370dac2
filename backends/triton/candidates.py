"""Which chunks a run of queries may take: routable, causal, and not covered whole by its anchors."""

from __future__ import annotations

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry, Keys, Runs
from sparsemoc.backends.planning.reach import Candidates, Near
from sparsemoc.backends.triton.kernels.candidates import candidates_kernel
from sparsemoc.backends.triton.library import kernel_on, library_of

#: Mask words to a program: a word is 32 chunks.
WORDS = 4
WARPS = 4


def candidates(geometry: Geometry, keys: Keys, runs: Runs, reached: Near, ends: Ends) -> Candidates:
    """Return the candidates of every run for the valid keys of a call.

    Args:
        geometry: the tables on the host.
        keys, runs, reached: those that the kernel reads, on the device.
        ends: where the valid keys end, on the device.
    """
    batch, count, words = ends.stops.shape[0], *runs.allowed.shape
    library, device = library_of(runs.allowed), runs.allowed.device
    bits, first, last = (
        library.empty((batch, count, width), dtype=library.int32, device=device)
        for width in (words, reached.width, reached.width)
    )
    kernel_on(runs.allowed, candidates_kernel)[(count, -(-words // WORDS), batch)](
        keys.chunk_lo, ends.stops, runs.anchor_ptr, runs.anchor_lo, runs.anchor_hi, runs.allowed, reached.first,
        bits, first, last,
        chunks=geometry.chunks, runs=count, words=words, near=reached.width, stride_stops=ends.stride,
        WORDS=WORDS, WINDOW=geometry.reach >= 0,
        num_warps=WARPS, num_stages=1,
    )  # fmt: skip
    shared = ends.stride == 0
    return Candidates(bits, first, last, *(0, 0) if shared else (count * words, count * reached.width))
