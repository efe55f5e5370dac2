"""The CuPy backend: what it is, and how its launches follow one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sparsemoc.backends.cupy import backward, forward, routing
from sparsemoc.backends.cupy.config import CupyConfig, default_config
from sparsemoc.backends.cupy.cost import estimate
from sparsemoc.backends.cupy.emulator import emulated
from sparsemoc.backends.cupy.faults import watched
from sparsemoc.backends.cupy.hardware import capability, described, hardware
from sparsemoc.backends.cupy.machine import machine_of
from sparsemoc.backends.cupy.routing_tiles import most_slots
from sparsemoc.backends.cupy.search import search_space
from sparsemoc.backends.cupy.tables import DeviceTables, device_tables, ends_of
from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import geometry
from sparsemoc.backends.planning.workspace import refused, slice_size
from sparsemoc.backends.protocol import Array, Capabilities, Estimate, Hardware, Operation, Problem, Randomness, Result
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.routing import Block

#: Oldest GPUs with asynchronous copies and bfloat16 matrix products.
LEAST_CAPABILITY = 80
_MOST_INDEX = 2**31 - 1


class CupyBackend:
    """Hand-written CUDA kernels on CuPy arrays and torch tensors. Accumulates in float32; bitwise repeatable."""

    name = "cupy"
    capabilities = Capabilities(
        frameworks=("numpy", "torch") if emulated() else ("cupy", "torch"),
        devices=("cpu",) if emulated() else ("cuda",),
        dtypes=("float16", "bfloat16", "float32"),
        max_head_dim=256,
        backward=True,
        deterministic=True,
        precisions=("ieee", "tf32"),
    )

    def refuses(self, problem: Problem) -> str | None:
        """Return None if the backend can run the problem, else the reason with its values."""
        plan = problem.plan
        if reason := self.capabilities.refuses(problem):
            return reason
        if problem.device == "cuda" and (found := capability(problem)) < LEAST_CAPABILITY:
            return f"runs on GPUs from sm_{LEAST_CAPABILITY} on, not on sm_{found}"
        dtype = "float32" if isinstance(plan.spec.unit, Block) else problem.dtype  # of what is routed
        if plan.slots > (kept := most_slots(dtype, problem.head_dim, capability(problem))):
            return f"keeps at most {kept} routes to a query, not {plan.slots}"
        if plan.q_tokens * max(plan.slots, 1) > _MOST_INDEX:
            return f"numbers at most {_MOST_INDEX} routes to a head, not {plan.q_tokens} x {plan.slots}"
        most = problem.options.max_workspace
        if most is not None and (least := _least_workspace(problem, self.default_config(problem))) > most:
            return refused(least, most)
        return None

    def version(self) -> str:
        """Return the versions and the GPU that results depend on."""
        return described()

    def default_config(self, problem: Problem) -> CupyConfig:
        """Return the config used where the caller gives none."""
        tables = geometry(problem.plan, False)
        staying = None if tables.splits_chunks else tables.most_chunk
        return default_config(max(problem.head_dim, problem.v_head_dim), problem.dtype, capability(problem), staying)

    def search_space(self, problem: Problem, operation: Operation) -> list[CupyConfig]:
        """Return the configs worth trying for an operation, the default first; see `search.search_space`."""
        return search_space(problem, operation, self.default_config(problem))

    def estimate(self, problem: Problem, operation: Operation, config: CupyConfig) -> Estimate:
        """Return what a config would cost, or why it cannot run; see `cost.estimate`."""
        return estimate(problem, operation, config, capability(problem))

    def hardware(self, problem: Problem) -> Hardware:
        """Return the GPU, or that a CPU stands in for it."""
        return hardware(problem)

    def workspace(self, problem: Problem, *, config: CupyConfig | None = None) -> int:
        """Return the bytes of partial results that a call without padding holds at a time.

        `Options.max_workspace` limits them; a call of several batch rows and key heads is cut until they fit.
        """
        need = _least_workspace(problem, config or self.default_config(problem))
        rows, heads = slice_size(problem.batch, problem.kv_heads, need, problem.options.max_workspace)
        return need * rows * heads

    def pool(self, problem: Problem, k: Array, key_lengths: Array | None, *, config: CupyConfig | None = None) -> Array:
        """Return the mean key of each chunk, float32 (batch, kv_heads, chunks, head_dim); 0 where it has no key."""
        with _given(problem, "pool", k, key_lengths) as on:
            return routing.pool(on.tables, k, on.ends, config or self.default_config(problem))

    def route(
        self,
        problem: Problem,
        q: Array,
        centroids: Array,
        key_lengths: Array | None,
        randomness: Randomness | None,
        *,
        config: CupyConfig | None = None,
    ) -> Array:
        """Return `Layout.selected`: the top_k candidates of each unit by score, ties to the lower chunk."""
        plan = problem.plan
        with _given(problem, "route", q, key_lengths) as on:
            return routing.route(
                on.tables, q, centroids, on.ends, plan.spec.top_k_of(problem.heads), plan.slots, randomness,
                plan.spec.dropout, config or self.default_config(problem), on.fault,
            )  # fmt: skip

    def attend(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        v: Array,
        layout: Layout,
        scale: float,
        *,
        config: CupyConfig | None = None,
    ) -> Result:
        """Return out and lse: partial results of anchors and of routes, merged by lse in a fixed order."""
        chosen = config or self.default_config(problem)
        with _given(problem, "attend", q, layout.key_lengths) as on:
            return Result(
                *forward.attend(problem, on.tables, q, k, v, layout.selected, on.ends, scale, chosen, on.fault)
            )

    def attend_backward(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        v: Array,
        layout: Layout,
        scale: float,
        result: Result,
        d_out: Array,
        d_lse: Array | None,
        *,
        config: CupyConfig | None = None,
    ) -> tuple[Array, Array, Array]:
        """Return dq, dk, dv from the merged result of the forward."""
        chosen = config or self.default_config(problem)
        with _given(problem, "attend_backward", q, layout.key_lengths) as on:
            return backward.attend_backward(
                problem, on.tables, q, k, v, layout.selected, on.ends, scale, result.out, result.lse, d_out, d_lse,
                chosen, on.fault,
            )  # fmt: skip


class _Given(NamedTuple):
    """What the launches of a call are given besides its arrays."""

    tables: DeviceTables
    ends: Ends
    fault: Array


@contextmanager
def _given(problem: Problem, operation: Operation, array: Array, key_lengths: Array | None) -> Iterator[_Given]:
    """Yield the tables, the ends and the fault word of a call on the machine of an array.

    Raises:
        LayoutError: an earlier call, or in checked mode this one, met a fault; see `faults.watched`.
    """
    machine = machine_of(array)
    with watched(machine, operation, problem) as fault:
        tables = device_tables(problem.plan, key_lengths is not None, machine)
        yield _Given(tables, ends_of(tables, key_lengths), fault)


def _least_workspace(problem: Problem, config: CupyConfig) -> int:
    """Return the bytes of partial results of one batch row and key head."""
    least = forward.least_workspace(problem, config)
    return max(least, backward.least_workspace(problem, config)) if problem.backward else least
