"""The Triton backend: what it is, and how its launches follow one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import triton

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import geometry
from sparsemoc.backends.planning.workspace import DEFAULT, refused, slice_size
from sparsemoc.backends.protocol import Capabilities, Estimate, Hardware, Operation, Problem, Randomness, Result
from sparsemoc.backends.triton import backward, cost, forward, gpu, jax_calls, providers, routing
from sparsemoc.backends.triton.config import TritonConfig, default_config
from sparsemoc.backends.triton.device import DeviceTables, device_tables
from sparsemoc.backends.triton.jax_calls import in_any_library
from sparsemoc.backends.triton.kernels.tile import INTERPRET
from sparsemoc.backends.triton.lengths import ends_of
from sparsemoc.backends.triton.search import search_space
from sparsemoc.spec.layout import Layout

#: Oldest GPUs with bfloat16 matrix products.
LEAST_CAPABILITY = 80
_MOST_INDEX = 2**31 - 1


class TritonBackend:
    """Tiled GPU kernels on torch tensors and JAX arrays. Accumulates in float32."""

    name = "triton"
    capabilities = Capabilities(
        frameworks=("torch", "jax"),
        devices=("cuda", "cpu") if INTERPRET.value else ("cuda",),
        dtypes=("float16", "bfloat16", "float32"),
        max_head_dim=256,
        backward=True,
        deterministic=True,
        precisions=("ieee", "tf32"),
        anchor_engines=("own", *providers.PROVIDERS),
    )

    def refuses(self, problem: Problem) -> str | None:
        """Return None if the backend can run the problem, else the reason with its values."""
        plan = problem.plan
        if reason := self.capabilities.refuses(problem) or _jax_refuses(problem) or _gpu_refuses(problem):
            return reason
        if plan.slots > routing.MOST_SLOTS:
            return f"keeps at most {routing.MOST_SLOTS} routes to a query, not {plan.slots}"
        if plan.q_tokens * max(plan.slots, 1) > _MOST_INDEX:
            return f"numbers at most {_MOST_INDEX} routes to a head, not {plan.q_tokens} x {plan.slots}"
        if problem.backward and plan.q_tokens * problem.head_dim > _MOST_INDEX:
            return f"sums at most {_MOST_INDEX} numbers of dq to a head, not {plan.q_tokens} x {problem.head_dim}"
        if problem.options.anchors not in ("auto", "own"):
            return providers.refuses(problem, geometry(plan, False))
        return _memory_refuses(problem, self.default_config(problem))

    def version(self) -> str:
        """Return the versions and the GPU that results depend on."""
        return f"triton {triton.__version__}, {gpu.described()}"

    def default_config(self, problem: Problem) -> TritonConfig:
        """Return the config used where the caller gives none."""
        dims = max(problem.head_dim, problem.v_head_dim)
        return default_config(dims, problem.dtype, gpu.capability(problem))

    def search_space(self, problem: Problem, operation: Operation) -> list[TritonConfig]:
        """Return the configs worth trying for an operation, the default first; see `search.search_space`."""
        return search_space(problem, operation, self.default_config(problem), gpu.capability(problem))

    def hardware(self, problem: Problem) -> Hardware:
        """Return the GPU, or that kernels are interpreted."""
        return gpu.hardware(problem)

    def estimate(self, problem: Problem, operation: Operation, config: TritonConfig) -> Estimate:
        """Return what a config would cost on the GPU, or why it cannot run there; see `cost`."""
        return cost.estimate(problem, operation, config, gpu.capability(problem))

    def workspace(self, problem: Problem, *, config: TritonConfig | None = None) -> int:
        """Return the bytes of partial results that a call without padding holds at a time.

        `Options.max_workspace` limits them; a call of several batch rows and key heads is cut until they fit.
        """
        need = _least_workspace(problem, config or self.default_config(problem))
        rows, heads = slice_size(problem.batch, problem.kv_heads, need, problem.options.max_workspace)
        return need * rows * heads

    @in_any_library
    def pool(self, problem: Problem, k: Any, key_lengths: Any, *, config: TritonConfig | None = None) -> Any:
        """Return the mean key of each chunk, float32 (batch, kv_heads, chunks, head_dim); 0 where it has no key."""
        with _on(problem, k) as tables_of:
            tables, ends = tables_of(key_lengths)
            return routing.pool(tables, k, ends, config or self.default_config(problem))

    @in_any_library
    def route(
        self,
        problem: Problem,
        q: Any,
        centroids: Any,
        key_lengths: Any,
        randomness: Randomness | None,
        *,
        config: TritonConfig | None = None,
    ) -> Any:
        """Return `Layout.selected`: the top_k candidates of each unit by score, ties to the lower chunk."""
        plan = problem.plan
        with _on(problem, q) as tables_of:
            tables, ends = tables_of(key_lengths)
            return routing.route(
                tables, q, centroids, ends, plan.spec.top_k_of(problem.heads), plan.slots, randomness,
                plan.spec.dropout, config or self.default_config(problem),
            )  # fmt: skip

    @in_any_library
    def attend(
        self,
        problem: Problem,
        q: Any,
        k: Any,
        v: Any,
        layout: Layout,
        scale: float,
        *,
        config: TritonConfig | None = None,
    ) -> Result:
        """Return out and lse: partial results of anchors and of routes, merged by lse in a fixed order."""
        with _on(problem, q) as tables_of:
            tables, ends = tables_of(layout.key_lengths)
            chosen = config or self.default_config(problem)
            return Result(*forward.attend(problem, tables, q, k, v, layout.selected, ends, scale, chosen))

    @in_any_library
    def attend_backward(
        self,
        problem: Problem,
        q: Any,
        k: Any,
        v: Any,
        layout: Layout,
        scale: float,
        result: Result,
        d_out: Any,
        d_lse: Any,
        *,
        config: TritonConfig | None = None,
    ) -> tuple[Any, Any, Any]:
        """Return dq, dk, dv from the merged result of the forward."""
        with _on(problem, q) as tables_of:
            tables, ends = tables_of(layout.key_lengths)
            chosen = config or self.default_config(problem)
            return backward.attend_backward(
                problem, tables, q, k, v, layout.selected, ends, scale, result.out, result.lse, d_out, d_lse, chosen
            )


@contextmanager
def _on(problem: Problem, array: Any) -> Iterator[Any]:
    """Launch on the device of an array; yield the function that gives a call's tables and ends.

    Raises:
        torch.OutOfMemoryError: where torch raises it; the text says which option lowers what was wanted.
    """

    def tables_of(key_lengths: Any) -> tuple[DeviceTables, Ends]:
        tables = device_tables(problem.plan, key_lengths is not None, array.device)
        return tables, ends_of(tables.geometry, tables.keys, key_lengths)

    if problem.framework != "torch":
        yield tables_of
        return
    torch = import_module("torch")
    with torch.cuda.device(array.device) if array.device.type == "cuda" else nullcontext():
        try:
            yield tables_of
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"triton: out of memory for {problem}. {error} Hint: temporary memory beside inputs and outputs is "
                f"kept under Options(max_workspace=bytes), {DEFAULT} where None; less makes more, smaller steps."
            ) from error


def _jax_refuses(problem: Problem) -> str | None:
    if problem.framework != "jax":
        return None
    if problem.device != "cuda":
        return f"takes JAX arrays on cuda alone, not {problem.device}"
    if problem.options.anchors not in ("auto", "own"):
        return f'has the anchor engine own alone for JAX arrays, not "{problem.options.anchors}"'
    return jax_calls.refuses()


def _gpu_refuses(problem: Problem) -> str | None:
    if problem.device != "cuda":
        return None
    found = gpu.capability(problem)
    if found < LEAST_CAPABILITY:
        return f"runs on GPUs from sm_{LEAST_CAPABILITY} on, not on {gpu.name(problem)} (sm_{found})"
    return None


def _least_workspace(problem: Problem, config: TritonConfig) -> int:
    """Return the bytes of partial results of one batch row and key head."""
    least = forward.least_workspace(problem, config)
    return max(least, backward.least_workspace(problem, config)) if problem.backward else least


def _memory_refuses(problem: Problem, config: TritonConfig) -> str | None:
    """Refuse a limit on temporary memory that not even one batch row and key head fits."""
    most = problem.options.max_workspace
    if most is not None and (least := _least_workspace(problem, config)) > most:
        return refused(least, most)
    return None
