"""How long a launch takes, by count.

    step   = max(products / tensor cores, bytes / shared memory, operations / lanes, bytes / second-level cache,
                 (the larger of the first two + operations / warps to a scheduler + LATENCY) / resident)      cycles
    block  = steps * step + bytes beside the steps / second-level cache + START / resident
    launch = max(block * blocks / multiprocessors * waves, bytes of device memory / bandwidth) * spills + LAUNCH
    waves  = ceil(w) / w,  w = blocks / (multiprocessors * resident)
    spills = 1 + registers beyond those that there are / SPILL

The clock and the peaks are nominal, and registers a fit to what the compiler says: what the times are for is the order
of configs.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from sparsemoc.backends.cupy.machine import Kernel
from sparsemoc.backends.gpus import gpu_of

#: Cycles a second; of a step that nothing hides; of the start and the end of a block; seconds of a launch.
HERTZ, LATENCY, START, LAUNCH = 1.7e9, 600, 2500, 4e-6
#: Plain operations and bytes of shared memory a cycle; bytes of the second-level cache for one of device memory.
LANES, SHARED, CACHE = 128, 128, 2.0
#: The share of the peak that products of a warp reach, by compute capability: later ones have faster ways.
_SHARES, _SHARE = {90: 0.6, 100: 0.4, 103: 0.4}, 0.8
#: Most registers of a thread, those of a multiprocessor, those beyond the limit that double the time.
REGISTERS, _REGISTER_FILE, _SPILL = 255, 65536, 64
#: Bytes of shared memory that the system takes of each block.
_RESERVED = 1024


class Launch(NamedTuple):
    """What a launch does.

    Attributes:
        kernel: which; `shared`, `threads` and `blocks_per_sm` count.
        blocks: of it; steps: of the loop of each, on average.
        products: FLOPs of a step on tensor cores; reads: bytes that it reads of shared memory; plain: its operations.
        loads: bytes that a step takes from the second-level cache; once: those of a block beside its steps.
        moved: bytes of device memory, of all blocks.
        registers: of a thread, about.
    """

    kernel: Kernel
    blocks: float
    steps: float = 1.0
    products: float = 0.0
    reads: float = 0.0
    plain: float = 0.0
    loads: float = 0.0
    once: float = 0.0
    moved: float = 0.0
    registers: float = 64.0


def register_limit(threads: int, blocks: int) -> int:
    """Return the most registers of a thread where a multiprocessor must hold some blocks."""
    return min(REGISTERS, _REGISTER_FILE // (threads * blocks))


def seconds(launch: Launch, capability: int) -> float:
    """Return the time of a launch on a GPU of a compute capability."""
    gpu, blocks, threads = gpu_of(capability), max(launch.blocks, 1.0), launch.kernel.threads
    limit = register_limit(threads, launch.kernel.blocks_per_sm)
    by_registers = int(_REGISTER_FILE / (min(launch.registers, limit) * threads))
    by_shared = gpu.shared_all // (launch.kernel.shared + _RESERVED)
    resident = max(1, min(by_shared, by_registers, gpu.threads // threads, ceil(blocks / gpu.processors)))
    cache = CACHE * gpu.bandwidth / gpu.processors / HERTZ
    tensor = launch.products * gpu.processors * HERTZ / (gpu.flops * _SHARES.get(capability, _SHARE))
    reads, plain = launch.reads / SHARED, launch.plain / LANES
    chain = max(tensor, reads) + plain / max(1, threads / 128) + LATENCY
    step = max(tensor, reads, plain, launch.loads / cache, chain / resident)
    waves = blocks / (gpu.processors * resident)
    block = launch.steps * step + launch.once / cache + START / resident
    cycles = block * blocks / gpu.processors * ceil(waves) / waves
    spills = 1 + max(0.0, launch.registers - limit) / _SPILL
    return max(cycles / HERTZ, launch.moved / gpu.bandwidth) * spills + LAUNCH
