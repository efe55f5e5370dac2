"""What a config would cost on a GPU: which launches an operation makes, what each needs, how long each takes.

See `resources` for shared memory and registers, and `roofline` for the time of a launch. Launches are counted from the
plan, without data: a chunk is chosen by `choosing` of the rows, the last tile of a list is half full, and a range of
keys is cut in whole tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from sparsemoc.backends.gpus import gpu_of
from sparsemoc.backends.planning.workspace import refused
from sparsemoc.backends.protocol import Estimate, Operation, Problem
from sparsemoc.backends.triton import backward, counts_pairs, counts_routing, forward
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.counts import Job, Part
from sparsemoc.backends.workload import workloads

#: Fields that are an axis of a matrix product, which takes 16 and more; those that are an axis of any tile.
_PRODUCTS = (
    "anchor_rows", "anchor_keys", "routed_rows", "routed_keys", "grad_rows", "grad_keys", "grad_query_rows",
    "grad_query_keys", "route_units", "route_chunks",
)  # fmt: skip
_POWERS = (*_PRODUCTS, "merge_rows", "pool_keys", "drop_units", "drop_chunks", "index_rows", "index_entries")
_LEAST = 16


@lru_cache(maxsize=256)
def estimate(problem: Problem, operation: Operation, config: TritonConfig, capability: int) -> Estimate:
    """Return the seconds of an operation on a GPU of a compute capability, or why a config cannot run there."""
    if (reason := _misshapen(config) or _workspace(problem, operation, config)) is not None:
        return Estimate(reason=reason)
    found = list(parts(problem, operation, config, capability))
    most = gpu_of(capability).shared
    for part in found:
        if part.needs.shared > most:
            reason = f"{part.kernel} needs {part.needs.shared} bytes of shared memory, sm_{capability} has {most}"
            return Estimate(reason=reason)
    return Estimate(sum(part.seconds for part in found))


def parts(problem: Problem, operation: Operation, config: TritonConfig, capability: int) -> Iterator[Part]:
    """Yield the launches of an operation that its config has a say in."""
    job = Job(problem, config, capability)
    for work in workloads(problem.plan):
        if operation == "pool":
            yield counts_routing.pool(job, work)
        elif operation == "route":
            yield from counts_routing.route(job, work)
        elif operation == "attend":
            yield from counts_pairs.attend(job, work)
        else:
            yield from counts_pairs.backward(job, work)


def _misshapen(config: TritonConfig) -> str | None:
    """Return which field holds what the kernels cannot take, or None."""
    for name in _POWERS:
        value, least = getattr(config, name), _LEAST if name in _PRODUCTS else 1
        if value < least or value & (value - 1):
            return f"{name} must be a power of 2 from {least} on, not {value}"
    if config.anchor_rows % config.merge_rows:
        return f"merge_rows {config.merge_rows} does not divide anchor_rows {config.anchor_rows}"
    return None


def _workspace(problem: Problem, operation: Operation, config: TritonConfig) -> str | None:
    most = problem.options.max_workspace
    if most is None or operation in ("pool", "route"):
        return None
    least = (forward if operation == "attend" else backward).least_workspace(problem, config)
    return refused(least, most) if least > most else None
