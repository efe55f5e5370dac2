"""Compile every CUDA kernel without a GPU: `python -m bench.nvrtc`, from the root of the checkout.

The kernels of the default configs are compiled to machine code for each architecture, and their registers, spills,
stack and shared memory are held under limits: a config that could not run on its target fails here, not at a user's
first call.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import NamedTuple

from sparsemoc.backends.cupy.config import most_shared
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.machine import Kernel
from sparsemoc.backends.cupy.nvrtc import arch_of, compile_kernel, version
from sparsemoc.backends.cupy.variants import EVERY_ROUTES, kernels

#: Compute capabilities that are compiled for.
ARCHITECTURES = (80, 89, 90, 100, 120)
#: Widths of rows: a head_dim between two takes the larger.
WIDTHS = (64, 128, 256)
#: Most registers of a thread, and of a multiprocessor, which deals them out by eights.
REGISTERS, REGISTER_FILE, REGISTER_UNIT = 255, 65536, 8
#: Routes to a query: lists of one length serve to compile everything, those of every length are compiled for LISTS.
USUAL_ROUTES, LISTS = (8,), ("bfloat16", 128, 90)
#: Where "tf32" is compiled, whose products are those of "ieee" with a piece less: width, GPU.
TF32 = (128, 90)


class Limits(NamedTuple):
    """Most bytes of the stack of a thread, and of what it spills: stores and loads, each counted once in the code."""

    stack: int = 0
    spills: int = 0


#: By kernel, element and width; nothing may spill that is not named. Sums of 256 columns and operands in three pieces
#: leave too few registers for what lasts over the loop.
LIMITS = {
    ("attend_anchors", "float", 256): Limits(stack=64, spills=256),
    ("attend_routed", "float", 256): Limits(stack=224, spills=480),
    ("key_grads", "float", 256): Limits(stack=8, spills=16),
}


@dataclass(frozen=True)
class Row:
    """What the compiler says of a kernel on an architecture, or the error; a line of the table."""

    kernel: Kernel
    capability: int
    seconds: float
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    error: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the kernel could not run, or not well, on its target; None if it can."""
        if self.error is not None:
            return self.error
        limits, dealt = limits_of(self.kernel), -(-self.registers // REGISTER_UNIT) * REGISTER_UNIT
        resident = dealt * self.kernel.threads * self.kernel.blocks_per_sm
        held = (
            ("registers", self.registers, REGISTERS),
            (f"registers of {self.kernel.blocks_per_sm} blocks", resident, REGISTER_FILE),
            ("bytes of spills", self.spills, limits.spills),
            ("bytes of stack", self.stack, limits.stack),
            ("bytes of shared memory", self.shared, most_shared(self.capability)),
        )
        return next((f"{value} {what}, more than {most}" for what, value, most in held if value > most), None)

    @property
    def line(self) -> str:
        """The kernel with its constants, architecture, and what it takes."""
        constants = " ".join(f"{name}={value}" for name, value in self.kernel.constants)
        return (
            f"{self.kernel.name:18} sm_{self.capability:<3} {self.registers:3} registers {self.spills:4} B spilled "
            f"{self.stack:3} B stack {self.shared:6} B shared {self.seconds:4.1f} s  {constants}"
        ) + ("" if self.problem is None else f"  CANNOT RUN: {self.problem}")


def limits_of(kernel: Kernel) -> Limits:
    """Return the limits of a kernel."""
    constants = dict(kernel.constants)
    return LIMITS.get((kernel.name, str(constants.get("ELEMENT")), int(constants.get("HEAD_BLOCK", 0))), Limits())


def variants(architectures: Sequence[int], whole: bool = False) -> Iterator[tuple[Kernel, int]]:
    """Yield every kernel with the capability to compile it for; `whole`: every precision and list everywhere."""
    for capability in architectures:
        for width in WIDTHS:
            precisions = ("ieee", "tf32") if whole or (width, capability) == TF32 else ("ieee",)
            for dtype in ("bfloat16", "float16", "float32"):
                routes = EVERY_ROUTES if whole or (dtype, width, capability) == LISTS else USUAL_ROUTES
                for one in kernels(dtype, width, capability, routes, precisions):
                    yield one, capability


def compilations(found: Iterable[tuple[Kernel, int]]) -> list[tuple[list[Kernel], int]]:
    """Return the kernels that one compilation gives, each once, with its capability."""
    groups: dict[tuple[Kernel, int], dict[Kernel, None]] = {}
    for one, capability in found:
        groups.setdefault((replace(one, name=""), capability), {})[one] = None
    return [(list(names), capability) for (_, capability), names in groups.items()]


def compiled(work: tuple[list[Kernel], int]) -> list[Row]:
    """Compile the kernels of one source and read what their machine code takes."""
    made, (names, capability) = [], work
    for one in names:
        start = time.monotonic()
        try:
            found = compile_kernel(one, arch_of(capability))
        except KernelError as error:
            made.append(Row(one, capability, time.monotonic() - start, error=str(error)))
            continue
        taken = found.registers, found.stack, found.spills, found.shared + one.shared
        made.append(Row(one, capability, time.monotonic() - start, *taken))
    return made


def _own_cache(folder: str) -> None:
    os.environ["SPARSEMOC_KERNEL_CACHE_DIR"] = folder


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="python -m bench.nvrtc", description="Compile every CUDA kernel, no GPU.")
    made.add_argument("--arch", nargs="+", type=int, choices=ARCHITECTURES, default=ARCHITECTURES, metavar="SM",
                      help=f"architectures, of {', '.join(map(str, ARCHITECTURES))} (default: all)")  # fmt: skip
    made.add_argument("--kernel", metavar="TEXT", default="", help="only kernels whose name holds this")
    made.add_argument("--whole", action="store_true", help="every precision and length of lists everywhere")
    made.add_argument("--jobs", type=int, default=2, help="compilations at a time (default: %(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print a line for each kernel, and return 1 if any could not run on its target."""
    asked = parser().parse_args(arguments)
    asked_for = [found for found in variants(asked.arch, asked.whole) if asked.kernel in found[0].name]
    rows: list[Row] = []
    start = time.monotonic()
    # Processes begin anew: a fork of one that runs threads, of whatever library, may wait for ever.
    context = get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(asked.jobs, context, initializer=_own_cache, initargs=(cache,)) as pool,
    ):
        for found in pool.map(compiled, compilations(asked_for)):
            rows += found
            print("\n".join(row.line for row in found), flush=True)
    wrong = [row for row in rows if row.problem is not None]
    number = ".".join(map(str, version()))
    print(f"NVRTC {number}: {len(rows)} kernels in {time.monotonic() - start:.0f} s, {len(wrong)} cannot run")
    for row in wrong:
        print(f"{row.kernel} on sm_{row.capability}: {row.problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
