"""The speed that `sparsemoc explain` tells of: what was measured here, read at a spec's length and density."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from sparsemoc.backends import Backend, Problem, get_backend
from sparsemoc.backends.registry import backend_names
from sparsemoc.cli.summary import counted
from sparsemoc.spec.checks import word
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.plan import Plan
from sparsemoc.tuning import crossover_store
from sparsemoc.tuning.crossover import Crossover, nearest
from sparsemoc.tuning.key import Environment, environment_of

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Asked:
    """Whose speed is asked for.

    Attributes:
        plan: of the spec, one sample.
        heads, head_dim: of q, k and v.
        density: share of all pairs that the spec is expected to keep.
        backend: None for all that can run here and were measured.
        dtype: None for the one that is usual on the backend's device.
    """

    plan: Plan
    heads: int
    head_dim: int
    density: float
    backend: str | None
    dtype: str | None

    @property
    def tokens(self) -> int:
        """Length of the stream."""
        return self.plan.samples[0].k_tokens

    @property
    def dense_pairs(self) -> float:
        """Share of all pairs that dense attention computes: no later keys where the spec allows none."""
        return (self.tokens + 1) / (2 * self.tokens) if self.plan.samples[0].token_causal else 1.0


def rows(asked: Asked) -> Iterator[tuple[str, str]]:
    """Yield the rows of a table, the name of a backend and what is expected of it.

    Raises:
        SpecError: there is no such dtype.
        UnsupportedError: the backend is unknown, or absent here.
    """
    if asked.dtype is not None:
        word(asked.dtype, "explain: --dtype", DTYPES)
    for backend in _backends(asked.backend):
        for number, line in enumerate(_lines(asked, backend)):
            yield "" if number else backend.name, line


def _backends(named: str | None) -> list[Backend]:
    """Return the named backend, or those to tell of: the first choice, and the others that were measured."""
    if named is not None:
        return [get_backend(named, "explain")]
    first, *others = backend_names()
    found = []
    for name in (first, *(one for one in others if crossover_store.measured(one))):  # others may take long to load
        try:
            found.append(get_backend(name, "explain"))
        except UnsupportedError:
            continue  # absent here: `sparsemoc doctor` says why
    return found


def _lines(asked: Asked, backend: Backend) -> list[str]:
    problem = _problem(asked, backend)
    reason = backend.refuses(problem)
    if reason is not None:
        return [f"cannot run this: it {reason}"]
    environment = environment_of(backend, problem)
    found = nearest(crossover_store.load(environment), problem.dtype, asked.head_dim)
    if found is None:
        return [_unmeasured(environment, problem)]
    return [*told(found, asked.tokens, asked.density, asked.dense_pairs), _measured(found, asked.head_dim)]


def _problem(asked: Asked, backend: Backend) -> Problem:
    able = backend.capabilities
    framework = next((name for name in able.frameworks if importlib.util.find_spec(name)), able.frameworks[0])
    device = "cpu" if "cpu" in able.devices else able.devices[0]  # kernels for GPUs take the CPU only where interpreted
    return Problem(
        plan=asked.plan,
        framework=framework,
        device=device,
        dtype=asked.dtype or ("float32" if device == "cpu" else "bfloat16"),
        batch=1,
        heads=asked.heads,
        kv_heads=asked.heads,
        head_dim=asked.head_dim,
        v_head_dim=asked.head_dim,
    )


def told(found: Crossover, tokens: int, density: float, dense_pairs: float = 1.0) -> list[str]:
    """Return what measured points say of a length and a density.

    Args:
        found: the points.
        tokens, density: of the spec.
        dense_pairs: see `Crossover.speedup`.
    """
    speedup = found.speedup(tokens, density, dense_pairs)
    if speedup is None:
        return [_beyond(found, tokens, density, dense_pairs)]
    here = f"{tokens:,} tokens at {_percent(density)} density{_stretched(found, tokens, density)}"
    length, most = found.length(density, dense_pairs), found.density(tokens, dense_pairs)
    if speedup <= 1:
        pays = f"from about {_rounded(length)}" if length else f"at no measured length, up to {found.lengths[-1]:,}"
        return [f"dense attention is expected to be faster here: {here} (MoC pays {pays})"]
    lines = [f"{_times(speedup)} as fast as dense attention is expected: {here}"]
    if length == found.lengths[0]:
        lines.append(f"at this density MoC is faster at every measured length, from {length:,} tokens")
    elif length is not None:
        lines.append(f"at this density MoC is faster from about {_rounded(length)} tokens")
    if most is not None:
        lines.append(f"at this length MoC is faster up to {_percent(most)} density")
    return lines


def _beyond(found: Crossover, tokens: int, density: float, dense_pairs: float) -> str:
    """Return what is not measured, and what the nearest measured length and density give."""
    within = min(max(tokens, found.lengths[0]), found.lengths[-1])
    kept = min(max(density, found.densities[0]), found.densities[1])
    limits = []
    if not found.knows(tokens, kept):
        limits.append(f"{'beyond' if tokens > within else 'below'} {within:,} tokens")
    if not found.knows(within, density):
        limits.append(f"{'above' if density > kept else 'below'} {_percent(kept)} density")
    speedup = found.speedup(within, kept, dense_pairs)
    assert speedup is not None, "the nearest measured length and density are known"
    there = f"at {within:,} tokens and {_percent(kept)} density"
    compared = f"{_times(speedup)} as fast as dense attention" if speedup > 1 else "dense attention is faster"
    return f"not measured {' and '.join(limits)}; {there}: {compared}"


def _stretched(found: Crossover, tokens: int, density: float) -> str:
    """Return from where a speed-up is carried on, "" where it lies within what was measured."""
    limits = []
    if not found.lengths[0] <= tokens <= found.lengths[-1]:
        limits.append(f"{found.lengths[0] if tokens < found.lengths[0] else found.lengths[-1]:,} tokens")
    if not found.densities[0] <= density <= found.densities[1]:
        limits.append(f"{_percent(found.densities[0] if density < found.densities[0] else found.densities[1])} density")
    return f", extrapolated from {' and '.join(limits)}" if limits else ""


def _measured(found: Crossover, head_dim: int) -> str:
    near = "" if found.head_dim == head_dim else f", the nearest measured to {head_dim}"
    threads = f", {counted(found.threads, 'thread')}" if found.threads else ""
    return (
        f"measured on {found.device} ({found.architecture}){threads}, {found.time[:10]}: {found.dtype}, "
        f"{counted(found.heads, 'head')}, head_dim {found.head_dim}{near}, against {found.dense}: {found.command}"
    )


def _unmeasured(environment: Environment, problem: Problem) -> str:
    command = f"python -m bench.crossover --backend {environment.backend} --dtype {problem.dtype}"
    return f"not measured on this machine ({environment.architecture}) in {problem.dtype}; in a checkout: {command}"


def _rounded(tokens: int) -> str:
    return f"{float(f'{tokens:.2g}'):,.0f}"


def _times(speedup: float) -> str:
    return f"{speedup:.0f} x" if speedup >= 9.95 else f"{speedup:.2g} x"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
