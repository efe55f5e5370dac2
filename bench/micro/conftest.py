"""Options, the sizes and backends of each benchmark, where runs are stored, and how one is checked and timed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import machine
from bench.micro import sizes
from bench.micro.indexing import INDEXES
from bench.micro.merging import MERGES
from bench.micro.ready import Ready, Step, place
from sparsemoc.backends import available_backends, get_backend
from sparsemoc.tuning.outcome import fields_of

#: Where runs are stored unless --benchmark-storage says otherwise; and what pytest-benchmark has for it.
STORAGE, UNSET = Path(__file__).resolve().parents[1] / "results" / machine.slug() / "micro", "file://./.benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of sizes."""
    group = parser.getgroup("sparsemoc")
    group.addoption("--large", action="store_true", help="measure 16,384 tokens too, beside about 2,048")
    group.addoption("--tiny", action="store_true", help="a few tokens instead: tries the machinery, times mean nothing")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to time side by side, and store runs by machine. pytest-benchmark reads its options after this."""
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("bench/micro needs pytest-benchmark. Hint: pip install -e '.[bench]'.")
    apart = config.getoption("dist", "no") == "no" and "PYTEST_XDIST_WORKER" not in os.environ
    if not apart and not config.getoption("benchmark_disable"):
        raise pytest.UsageError("bench/micro: processes side by side disturb each other's times. Hint: add -n 0.")
    # An unlike machine, or nothing to compare with, is worth a word and no error.
    from pytest_benchmark.logger import PytestBenchmarkWarning

    warnings.filterwarnings("default", category=PytestBenchmarkWarning)
    # Where a check fails nothing is timed: the check has said so.
    unused = "Benchmark fixture was not used:pytest_benchmark.logger.PytestBenchmarkWarning"
    config.addinivalue_line("filterwarnings", f"ignore:{unused}")
    if config.option.benchmark_storage == UNSET and not config.getoption("benchmark_disable"):
        config.option.benchmark_storage = f"file://{STORAGE}"


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Leave out what differs from run to run on the same machine, and the machine's name."""
    for name in ("node", "release"):
        machine_info.pop(name, None)
    cpu = machine_info.get("cpu", {})
    machine_info["cpu"] = {name: cpu.get(name) for name in ("arch", "brand_raw", "count")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a benchmark for every size, and where it takes `ready` for every backend and dtype; skip what cannot run."""
    step = metafunc.function.__name__.removeprefix("test_")
    option = metafunc.config.getoption
    chosen = [sizes.TINY] if option("--tiny") else [sizes.SMALL, *([sizes.LARGE] if option("--large") else [])]
    if "ready" not in metafunc.fixturenames:
        metafunc.parametrize("size", chosen)
        return
    # An index is made of whole numbers: once is enough.
    dtypes = sizes.DTYPES[:1] if step in ("index", "index_forward") else sizes.DTYPES
    found = [_case(step, name, dtype, size) for size in chosen for dtype in dtypes for name in available_backends()]
    metafunc.parametrize("ready", found, indirect=True)


def _case(step: str, name: str, dtype: str, size: str) -> Any:
    at = place(name, dtype, size)
    reason = at if isinstance(at, str) else _lacks(step, name)
    marks = () if reason is None else pytest.mark.skip(reason=f"{name} {reason}")
    return pytest.param((name, dtype, size, *at[:2]), id=f"{name}-{dtype}-{size}", marks=marks)


def _lacks(step: str, name: str) -> str | None:
    """Return why a backend has no such step, or None."""
    if step == "merge" and name not in MERGES:
        return "keeps running sums while it attends: it has no merge"
    if step in ("index", "index_forward") and step not in INDEXES.get(name, {}):
        return "has one index for both passes" if name in INDEXES else "has no index that is known here"
    return None


@pytest.fixture
def ready(request: pytest.FixtureRequest) -> Ready:
    """A backend with the arrays of a size."""
    name, dtype, size, framework, device = request.param
    return _ready(name, dtype, size, framework, device)


@cache
def _ready(name: str, dtype: str, size: str, framework: str, device: str) -> Ready:
    return Ready(get_backend(name), size, dtype, framework, device)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Let NumPy, which interprets Triton's kernels, pass over what a GPU passes over."""
    with np.errstate(all="ignore"):
        yield


@cache
def _commit() -> str | None:
    return machine.commit()


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Check what a call gives, then time it, with what a reader must know beside.

    Args of the function:
        call: what to time; a `Step`, or a function that needs no backend.
        check: raises where the result is wrong.
        flops: useful operations of a call, None where none are counted.
    """
    step = request.function.__name__.removeprefix("test_")

    def run(call: Step | Callable[[], Any], check: Callable[[Any], None], *, flops: int | None = None) -> None:
        ready: Ready | None = request.getfixturevalue("ready") if "ready" in request.fixturenames else None
        size = request.getfixturevalue("size") if ready is None else ready.size
        function = call.call if isinstance(call, Step) else call
        check(function())
        benchmark.group = ", ".join([step, size, *([] if ready is None else [ready.dtype])])
        benchmark.extra_info.update(_facts(step, size, flops))
        if ready is not None:
            benchmark.extra_info.update(_facts_of(ready, call if isinstance(call, Step) else None))
        rounds, iterations = sizes.turns(step, size, None if ready is None else ready.backend.name)
        benchmark.pedantic(function, rounds=rounds, iterations=iterations, warmup_rounds=1)

    return run


def _facts(step: str, size: str, flops: int | None) -> dict[str, Any]:
    named = sizes.problem(size)
    return {
        "step": step, "problem": named.name, "about": named.about, "tokens": named.tokens, "heads": named.heads,
        "kv_heads": named.kv_heads, "head_dim": named.head_dim, "useful_flops": flops, "commit": _commit(),
    }  # fmt: skip


def _facts_of(ready: Ready, step: Step | None) -> dict[str, Any]:
    """Return what a backend is, what it runs on, and under which config; of a whole call, not of one operation."""
    facts: dict[str, Any] = {
        "backend": ready.backend.name, "backend_version": ready.backend.version(), "dtype": ready.dtype,
        "framework": ready.framework, "device_kind": ready.device,
    }  # fmt: skip
    if step is not None:
        where = step.work.environment
        facts |= {
            "pairs": ready.pairs, "config": fields_of(step.config), "config_source": step.source,
            "device": where.device, "architecture": where.architecture, "driver": where.driver,
        }  # fmt: skip
    return facts
