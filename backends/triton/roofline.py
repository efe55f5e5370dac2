"""How long a launch takes, by count.

    step      = max(compute, loads, (compute + LATENCY / stages) / resident)     cycles of a multiprocessor
    compute   = operations / (peak of a multiprocessor a cycle * share of the peak that such tiles reach)
    loads     = bytes of the step / bytes a cycle from the second-level cache
    block     = steps * step + START / resident
    launch    = max(block * blocks / multiprocessors * waves, bytes of device memory / bandwidth) * spills + LAUNCH
    waves     = ceil(w) / w,  w = blocks / (multiprocessors * resident); there are no more resident than come to each
    spills    = 1 + registers beyond 255 / SPILL

Where no step is in flight while another computes, compute and loads add up. The clock is nominal, as are the peaks:
what the times are for is the order of configs.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from sparsemoc.backends.gpus import gpu_of
from sparsemoc.backends.triton.resources import REGISTERS, WARPGROUPS, Needs, Tile, resident

#: Cycles a second; of a step that nothing hides; of the start and the end of a block.
HERTZ, LATENCY, START = 1.7e9, 600, 2500
#: Bytes of the second-level cache for one of device memory; registers that double the time; seconds of a launch.
CACHE, SPILL, LAUNCH = 2.0, 64, 4e-6
#: Operations of integers and comparisons a cycle of a multiprocessor.
LANES = 128


class Launch(NamedTuple):
    """What a launch does.

    Attributes:
        blocks: programs; steps: of the loop of each, on average.
        flops: of a step, in matrix products; others: plain operations of a step.
        loads: bytes of a step.
        moved: bytes that come from device memory or go there, of all programs.
        start: cycles of a program before and after its loop.
    """

    blocks: float
    steps: float
    flops: float = 0.0
    others: float = 0.0
    loads: float = 0.0
    moved: float = 0.0
    start: float = START


def share_of_peak(tile: Tile, capability: int, length: int) -> float:
    """Return the share of the peak of matrix products of `length` rows; those of float32 are three of half the speed.

    Where groups of warps multiply, a tile that leaves them out reaches half as much.
    """
    share = 0.7 if capability not in WARPGROUPS or tile.grouped(capability, length) else 0.35
    return share / 6 if tile.item == 4 else share


def seconds(launch: Launch, needs: Needs, warps: int, stages: int, capability: int, share: float = 0.7) -> float:
    """Return the time of a launch."""
    gpu, blocks = gpu_of(capability), max(launch.blocks, 1.0)
    blocks_at_once = min(resident(gpu, needs, warps), ceil(blocks / gpu.processors))
    compute = launch.flops / (gpu.flops / gpu.processors / HERTZ * share) + launch.others / LANES
    loads = launch.loads / (CACHE * gpu.bandwidth / gpu.processors / HERTZ)
    if stages == 1:
        compute += loads
    step = max(compute, loads, (compute + LATENCY / stages) / blocks_at_once)
    waves = blocks / (gpu.processors * blocks_at_once)
    block = launch.steps * step + launch.start / blocks_at_once
    cycles = block * blocks / gpu.processors * ceil(waves) / waves
    spills = 1 + max(0.0, needs.registers - REGISTERS) / SPILL
    return max(cycles / HERTZ, launch.moved / gpu.bandwidth) * spills + LAUNCH
