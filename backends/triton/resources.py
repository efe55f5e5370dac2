"""What a block of a kernel takes of a GPU: shared memory, registers.

Shared memory is a lower bound: the operands that stay, as many steps of the loop as are in flight at once, and, in the
gradients, one tile of weights. The compiler may need more, for what changes its layout on the way; so no config is
refused that could run. Registers are a rough fit to what the compiler says, those that it spills included.
"""

from __future__ import annotations

from typing import NamedTuple

from sparsemoc.backends.gpus import Gpu

#: Most registers of a thread.
REGISTERS = 255
#: Registers, and bytes of shared memory that the system takes of each block, of a multiprocessor.
_REGISTER_FILE, _RESERVED = 65536, 1024


#: Architectures whose warps multiply in groups of four, from shared memory: one step more is in flight.
WARPGROUPS = (90, 100, 103)
#: Those whose accumulators, and weights, lie in a memory of their own.
TENSOR_MEMORY = (100, 103)


class Tile(NamedTuple):
    """The tile of a kernel of pairs: rows and keys at a time, the widths of q and v, bytes of an element."""

    rows: int
    keys: int
    warps: int
    stages: int
    depth: int
    v_depth: int
    item: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    def grouped(self, capability: int, length: int) -> bool:
        """Return whether groups of four warps multiply, which takes 64 rows of the product, `length` of them here."""
        return capability in WARPGROUPS and length >= 64 and self.warps >= 4

    def steps(self, capability: int, length: int) -> int:
        """Return how many steps of the loop hold their operands in shared memory at once, at least."""
        return self.stages - (self.item == 4 or not self.grouped(capability, length))

    def staying(self, capability: int, length: int, *widths: int) -> int:
        """Return the elements of operands of a length that stay, at least; parts of float32 may take turns.

        With tensor memory those of float32 may lie there.
        """
        if self.item == 4:
            return 0 if capability in TENSOR_MEMORY else length * max(widths)
        return length * sum(widths)


class Needs(NamedTuple):
    """Bytes of shared memory of a block, at least, and registers of a thread, about."""

    shared: int
    registers: float


def attend_needs(tile: Tile, capability: int) -> Needs:
    """Return the needs of the forward: the queries stay, keys and values pass."""
    shared = tile.staying(capability, tile.rows, tile.depth)
    shared += tile.steps(capability, tile.rows) * tile.keys * (tile.depth + tile.v_depth)
    registers = 110 + (0.9 * tile.rows * tile.v_depth + 2 * tile.rows * tile.keys) / tile.threads
    return Needs(shared * tile.item, registers + _thirds(tile, tile.rows, tile.depth))


def grad_needs(tile: Tile, capability: int) -> Needs:
    """Return the needs of the gradients of keys and values: these stay, queries and gradients of out pass."""
    widths = tile.depth + tile.v_depth
    weights = 0 if capability in TENSOR_MEMORY else tile.rows * tile.keys
    shared = (
        tile.staying(capability, tile.keys, tile.depth, tile.v_depth)
        + tile.steps(capability, tile.keys) * tile.rows * widths
        + weights
    )
    registers = 170.0 if capability in WARPGROUPS else 200.0
    registers += (0.6 * tile.keys * widths + tile.rows * tile.keys) / tile.threads
    return Needs(shared * tile.item, registers + _thirds(tile, tile.keys, widths))


def query_grad_needs(tile: Tile, capability: int) -> Needs:
    """Return the needs of the gradients of queries in a fixed order: queries and gradients of out stay."""
    widths = tile.depth + tile.v_depth
    shared = (
        tile.staying(capability, tile.rows, tile.depth, tile.v_depth)
        + tile.steps(capability, tile.rows) * tile.keys * widths
    )
    registers = 60 + (1.5 * tile.rows * tile.depth + 3 * tile.rows * tile.keys) / tile.threads
    return Needs(shared * tile.item, registers + _thirds(tile, tile.rows, widths))


def _thirds(tile: Tile, length: int, width: int) -> float:
    """Return the registers that products of float32 take more: their operands come in parts."""
    return 2 * length * width / tile.threads if tile.item == 4 else 0


def resident(gpu: Gpu, needs: Needs, warps: int) -> int:
    """Return how many blocks a multiprocessor holds at once."""
    threads = 32 * warps
    by_registers = int(_REGISTER_FILE / (min(needs.registers, REGISTERS) * threads))
    return max(1, min(gpu.shared_all // (needs.shared + _RESERVED), by_registers, gpu.threads // threads, 32))
