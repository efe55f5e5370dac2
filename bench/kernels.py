"""Compile every Triton kernel without a GPU: `python -m bench.kernels`, from the root of the checkout.

Each variant that ships is compiled to machine code for each architecture, and its shared memory, registers and spills
are held under limits: a config that could not run on its target fails here, not at a user's first call.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsemoc.backends.gpus import GPUS

#: Most shared memory of a block, bytes, by the compute capabilities that are compiled for.
SHARED = {capability: GPUS[capability].shared for capability in (80, 89, 90, 100, 120)}
#: Most registers of a thread, and most bytes of spills: of a kernel without flags, and of one whose flags say that it
#: masks. Half of the spills of masked tiles stand beside loops that only NaN and infinities enter.
REGISTERS, SPILLS, MASKED_SPILLS = 255, 384, 768
#: Modules that list the kernels, `signatures_<part>`.
PARTS = ("routing", "forward", "backward")
#: head_dim and dtype of the shipped configs.
CONFIGS = (
    (128, "bfloat16"), (64, "bfloat16"), (256, "bfloat16"), (128, "float16"), (128, "float32"), (64, "float32"),
    (256, "float32"),
)  # fmt: skip
#: Those of CONFIGS for which the routing kernels are compiled: their tiles are the same in every config.
ROUTING = ((128, "bfloat16"), (256, "float32"))
#: Where every variant is compiled; elsewhere one of each kernel, the first or the one that a default call runs.
VARIANTS = (128, "bfloat16", 90)
USUAL = ("grads add_dq",)
#: Names of kernels with the longest lists that a tile takes: they compile for ten seconds each, so only where asked.
LONGEST = "512slots"


@dataclass(frozen=True)
class Job:
    """One compilation, by numbers that another process understands."""

    part: str
    index: int
    head_dim: int
    dtype: str
    capability: int


@dataclass(frozen=True)
class Outcome:
    """What a compilation gave: resources of a block and a thread, or the error."""

    kernel: str
    head_dim: int
    dtype: str
    capability: int
    seconds: float
    shared: int = 0
    registers: int = 0
    spills: int = 0
    error: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the kernel could not run, or not well, on its target; None if it can."""
        most = MASKED_SPILLS if "-" in self.kernel or " " in self.kernel else SPILLS
        if self.error is not None:
            return self.error
        if self.shared > SHARED[self.capability]:
            return f"{self.shared} bytes of shared memory, more than {SHARED[self.capability]}"
        if self.registers > REGISTERS:
            return f"{self.registers} registers, more than {REGISTERS}"
        if self.spills > most:
            return f"{self.spills} bytes of spills, more than {most}"
        return None


def jobs_of(architectures: Sequence[int], whole: bool = False, few: bool = False) -> Iterator[tuple[Job, str]]:
    """Yield every compilation with the name of its kernel; `whole`: every variant everywhere, `few`: one everywhere."""
    for capability in architectures:
        for head_dim, dtype in CONFIGS:
            for part in PARTS if whole or (head_dim, dtype) in ROUTING else PARTS[1:]:
                variants = _variants(part, head_dim, dtype, capability)
                every = not few and (head_dim, dtype, capability) == VARIANTS
                chosen = set(range(len(variants))) if whole else _chosen(variants, every)
                for index in sorted(chosen):
                    yield Job(part, index, head_dim, dtype, capability), variants[index].name


def _chosen(variants: list[Any], every: bool) -> set[int]:
    """Return which variants to compile: every one but the longest lists, or for each kernel the one usually run."""
    if every:
        return {index for index, one in enumerate(variants) if not one.name.endswith(LONGEST)}
    first: dict[Any, int] = {}
    for index, one in enumerate(variants):
        if one.kernel not in first or one.name in USUAL:
            first[one.kernel] = index
    return set(first.values())


def _variants(part: str, head_dim: int, dtype: str, capability: int) -> list[Any]:
    from sparsemoc.backends.triton.config import default_config

    module = importlib.import_module(f"sparsemoc.backends.triton.signatures_{part}")
    found: list[Any] = module.kernels(default_config(head_dim, dtype, capability), head_dim, head_dim, dtype)
    return found


def compiled(job: Job) -> Outcome:
    """Compile one kernel and read what its machine code takes."""
    import triton
    from triton.backends.compiler import GPUTarget

    variant = _variants(job.part, job.head_dim, job.dtype, job.capability)[job.index]
    about = (variant.name, job.head_dim, job.dtype, job.capability)
    source = triton.compiler.ASTSource(
        fn=variant.kernel, signature=variant.signature, constexprs=variant.constants, attrs=_aligned(variant)
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}
    start = time.monotonic()
    try:
        made = triton.compile(source, target=GPUTarget("cuda", job.capability, 32), options=options)
    except Exception as error:  # noqa: BLE001  whatever the compiler raises is this kernel's outcome
        return Outcome(*about, time.monotonic() - start, error=f"{type(error).__name__}: {error}".splitlines()[0])
    seconds = time.monotonic() - start
    registers, stack = _usage(made.asm["cubin"])
    return Outcome(*about, seconds, made.metadata.shared, registers, stack)


def _aligned(variant: Any) -> dict[tuple[int], list[list[Any]]]:
    """Return what Triton finds at a launch with usual arrays: pointers and strides that 16 divides."""
    return {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(variant.kernel.arg_names)
        if variant.signature[name].startswith("*")
        or (name.startswith("stride_") and variant.signature[name] != "constexpr")
    }


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return registers of a thread, and bytes of its stack, where spills go."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"(REG|STACK):(\d+)", shown.stdout))
    return int(found["REG"]), int(found["STACK"])


def _own_cache(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder


def _line(outcome: Outcome, done: int, total: int) -> str:
    return (
        f"[{done}/{total}] sm_{outcome.capability} {outcome.dtype} {outcome.head_dim} {outcome.kernel}: "
        f"{outcome.shared} B shared, {outcome.registers} registers, {outcome.spills} B spilled, {outcome.seconds:.1f} s"
        + ("" if outcome.problem is None else f"  CANNOT RUN: {outcome.problem}")
    )


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="python -m bench.kernels", description="Compile every Triton kernel, no GPU.")
    made.add_argument("--arch", nargs="+", type=int, choices=tuple(SHARED), default=list(SHARED), metavar="SM",
                      help=f"architectures, of {', '.join(map(str, SHARED))} (default: all)")  # fmt: skip
    made.add_argument("--kernel", metavar="TEXT", default="", help="only kernels whose name holds this")
    made.add_argument("--whole", action="store_true", help="every variant for every config and architecture: an hour")
    made.add_argument("--few", action="store_true", help="one variant of each kernel, in every config")
    made.add_argument("--jobs", type=int, default=2, help="compilations at a time (default: %(default)s)")
    made.add_argument("--out", type=Path, metavar="FILE", help="JSON lines to append to")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print a line for each kernel, and return 1 if any could not run on its target."""
    asked = parser().parse_args(arguments)
    import triton

    jobs = [job for job, name in jobs_of(asked.arch, asked.whole, asked.few) if asked.kernel in name]
    wrong, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as cache, ProcessPoolExecutor(asked.jobs, initializer=_own_cache,
                                                                     initargs=(cache,)) as pool:  # fmt: skip
        for done, outcome in enumerate(pool.map(compiled, jobs), 1):
            wrong += outcome.problem is not None
            print(_line(outcome, done, len(jobs)), flush=True)
            if asked.out is not None:
                with asked.out.open("a") as lines:
                    lines.write(json.dumps(asdict(outcome) | {"triton": triton.__version__}) + "\n")
    print(f"triton {triton.__version__}: {len(jobs)} kernels in {time.monotonic() - start:.0f} s, {wrong} cannot run")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
