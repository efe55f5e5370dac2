"""Lower calls on JAX arrays for NVIDIA GPUs through jax-triton, without a GPU: `python -m bench.jax_lowering`.

Each line is a call: what it is lowered for, how many kernels it launches, and the size of the program. Then every
kernel is assembled to machine code, and its shared memory is held under the limit of its architecture. Nothing runs:
what only a GPU can show, this does not show.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import sparsemoc as moc
from bench.kernels import SHARED
from sparsemoc.backends.triton import gpu, jax_calls
from sparsemoc.backends.triton.backend import TritonBackend

ARCHITECTURES = (80, 90, 100)
#: What jax-triton calls a launch in a lowered program.
LAUNCH = "@triton_kernel_call_ffi("
STREAM = moc.Stream.multishot(shots=3, frames=4, height=8, width=8, caption=20, prompt=50)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=64), top_k=2, anchors=("text", "shot"), causal="chunk")
TINY = moc.RoutingSpec(
    stream=moc.Stream((moc.Segment("video", 9), moc.Segment("text", 1))), chunks=moc.Chunks(size=None), top_k=1,
    anchors=(), causal="token", dropout=moc.RouteDropout(off=2.0**-16, into=1.0, into_max=1),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Calls that are lowered.

    Attributes:
        spec: the routing spec.
        dtype, head_dim: of q, k and v.
        lanes: batch, heads, kv_heads.
        padded: whether there are key_lengths.
        wishes: further arguments of `sparsemoc.attention`.
    """

    spec: moc.RoutingSpec
    dtype: str = "bfloat16"
    head_dim: int = 128
    lanes: tuple[int, int, int] = (2, 4, 2)
    padded: bool = False
    wishes: dict[str, Any] = field(default_factory=dict)


CASES = {
    "shots": Case(SPEC),
    "padding": Case(replace(SPEC, anchors=("text", moc.window(100))), "float16", 64, padded=True),
    "deterministic": Case(replace(SPEC, anchors=("chunk",), top_k=1), wishes={"deterministic": True}),
    "blocks": Case(replace(SPEC, unit=moc.Block(64), causal="token"), "float32", 64),
    "dropout": Case(replace(SPEC, dropout=moc.RouteDropout(off=0.5, into=1.0)), padded=True),
    "slices": Case(SPEC, "float16", wishes={"options": moc.Options(max_workspace=2**22)}),
    # Sizes of 1 are compile-time constants to jax-triton, also where Triton is told to leave them alone.
    "ones": Case(TINY, "float32", 16, (1, 1, 1), wishes={"scale": 1.0}),
}


def calls(case: Case) -> Iterator[tuple[str, Callable[..., Any], list[Any]]]:
    """Return the calls of a case: name, function of JAX arrays, and the arrays' shapes and dtypes."""
    jax = import_module("jax")
    batch, heads, kv_heads = case.lanes
    plan = moc.plan(case.spec)
    shapes = [(plan.k_tokens, count, case.head_dim) for count in (heads, kv_heads, kv_heads)]
    arrays = [jax.ShapeDtypeStruct((batch, *shape), case.dtype) for shape in shapes]
    arrays.append(jax.ShapeDtypeStruct((), "uint32"))
    lengths = [jax.ShapeDtypeStruct((batch, plan.most_segments), "int32")] if case.padded else []
    backend = TritonBackend()

    def attend(q: Any, k: Any, v: Any, seed: Any, *lengths: Any) -> Any:
        given = {"key_lengths": lengths[0]} if lengths else {}
        drops: dict[str, Any] = {"training": True, "seed": seed} if case.spec.dropout else {}
        return moc.attention(q, k, v, case.spec, backend=backend, return_lse=True, **given, **drops, **case.wishes)

    def total(*given: Any) -> Any:
        out, lse = attend(*given)
        return out.astype("float32").sum() + lse.sum()

    yield "forward", attend, [*arrays, *lengths]
    yield "gradients", jax.grad(total, (0, 1, 2)), [*arrays, *lengths]
    if case.spec is SPEC:
        mapped = [jax.ShapeDtypeStruct((3, *one.shape), one.dtype) for one in arrays[:3]]
        yield "vmap", jax.vmap(jax.grad(total, (0, 1, 2)), (0, 0, 0, None)), [*mapped, arrays[3]]
        mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
        rows, whole = jax.P("rows"), jax.P()
        shard = jax.shard_map(attend, mesh=mesh, in_specs=(rows, rows, rows, whole), out_specs=rows)

        def sharded_total(*given: Any) -> Any:
            out, lse = shard(*given)
            return out.astype("float32").sum() + lse.sum()

        yield "shard_map", jax.grad(sharded_total, (0, 1, 2)), arrays


def lower(function: Callable[..., Any], arrays: list[Any], capability: int) -> str:
    """Return a function as a program for GPUs of a compute capability."""
    jax = import_module("jax")
    with gpu.lowering_for(capability), jax.default_device("gpu"):
        traced = jax.jit(function).trace(*arrays)
    text: str = traced.lower(lowering_platforms=("cuda",)).as_text()
    return text


def lower_all(architectures: list[int], cases: list[str]) -> None:
    """Lower the calls, and print a line for each."""
    for capability in architectures:
        for name in cases:
            for call, function, arrays in calls(CASES[name]):
                start = time.perf_counter()
                text = lower(function, arrays, capability)
                launches = text.count(LAUNCH)
                if not launches:
                    sys.exit(f"{name}, {call}: no kernel is launched")
                print(
                    f"sm_{capability:<4}{name:<15}{call:<11}{launches:>3} launches{len(text):>9} bytes"
                    f"{time.perf_counter() - start:>7.1f} s",
                    flush=True,
                )


def assembled(ptx: Path) -> tuple[int, int]:
    """Return the compute capability of a kernel and the bytes of its machine code.

    Raises:
        RuntimeError: the assembler refuses it, or it wants more shared memory than the GPU has.
    """
    compiler = import_module("triton.backends.nvidia.compiler")
    target = re.findall(r"^\.target (sm_(\d+)\w*)", ptx.read_text(), re.MULTILINE)[0]
    capability = int(target[1])
    shared = int(re.findall(r"shared_mem_bytes: (\d+)", ptx.with_suffix(".compile_info").read_text())[0])
    if shared > SHARED[capability]:
        raise RuntimeError(
            f"{ptx.stem} wants {shared} bytes of shared memory, sm_{capability} has {SHARED[capability]}"
        )
    code = ptx.with_suffix(".cubin")
    program = compiler.get_ptxas(capability).path
    command = [program, f"--gpu-name={target[0]}", str(ptx), "-o", str(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{ptx.stem} for {target[0]}: {done.stderr}")
    return capability, code.stat().st_size


def main(arguments: list[str] | None = None) -> None:
    """Lower routing, attention and gradients, and assemble their kernels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, 90 for sm_90")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES), help="cases, default all")
    options = parser.parse_args(arguments)
    if reason := jax_calls.refuses():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_TRITON_DUMP_DIR"] = folder
        before = os.environ.setdefault("TRITON_CACHE_DIR", folder)
        jax_calls.import_jax_triton()
        if os.environ.get("TRITON_CACHE_DIR") != before:
            sys.exit("TRITON_CACHE_DIR is not what it was before jax_triton was imported")
        lower_all(options.arch, options.case)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sizes = list(pool.map(assembled, Path(folder).glob("*/*.ptx")))
    for capability in options.arch:
        found = [size for of, size in sizes if of == capability]
        print(f"sm_{capability:<4}{len(found)} kernels assembled, {sum(found)} bytes")


if __name__ == "__main__":
    main()
