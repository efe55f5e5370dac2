"""One case, measured: the records of its forward, its gradients, its memory and its growth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import sparsemoc as moc
from bench import configs, dense, machine, refcheck, refkeys
from bench.cpu import memory, small
from bench.cpu.cases import Case, inputs
from bench.inputs import Inputs
from bench.timing import Times, interleaved
from sparsemoc.backends import Problem, get_backend
from sparsemoc.backends.numba.threads import thread_count

Record = dict[str, Any]

#: Longest stream on which a sweep of growth still measures dense attention; beyond it, the square of the lengths.
LONGEST_DENSE = 16384
#: Sampled queries of the check on streams longer than that: the oracle takes its time over long ones.
LONG_ROWS = 16


@dataclass(frozen=True)
class Setting:
    """What is run: the backend, and the number of rounds."""

    backend: str
    rounds: int

    @property
    def threads(self) -> int:
        """Threads of either side."""
        return thread_count()

    def call(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Call a public function with this backend."""
        return function(*arguments, backend=self.backend, **more)


@dataclass(frozen=True, eq=False)
class Ready:
    """A case with its arrays, and its layout from a call whose results have been checked."""

    case: Case
    inputs: Inputs
    layout: moc.Layout
    errors: Record

    @property
    def pair_ratio(self) -> float:
        """All pairs over kept pairs: how much faster than dense attention the kept pairs alone would make it."""
        return 1 / self.layout.density()


def attention(case: Case, given: Inputs, setting: Setting) -> Callable[[], Any]:
    """Return the call of the forward, routing included."""
    spec = case.spec()
    return lambda: setting.call(moc.attention, given.q, given.k, given.v, spec)


def checked(case: Case, setting: Setting, rows: int = refcheck.ROWS) -> Ready:
    """Make the arrays of a case, call attention once, and check what it gives."""
    given, spec = inputs(case), case.spec()
    out, lse, layout = setting.call(moc.attention, given.q, given.k, given.v, spec, return_lse=True, return_layout=True)
    asked = refcheck.Question(case.name, spec, given)
    errors = refcheck.check(asked, layout.selected, {"out": out, "lse": lse}, rows=rows)
    return Ready(case, given, layout, errors)


def forward(case: Case, setting: Setting) -> Record:
    """Time attention with its routing beside dense attention, and routing alone."""
    ready = checked(case, setting)
    given, spec = ready.inputs, case.spec()
    times = interleaved(
        {
            "ours": attention(case, given, setting),
            **dense.beside(given, setting.threads, "forward"),
            "routing": lambda: setting.call(moc.route, given.q, given.k, spec),
        },
        setting.rounds,
    )
    found = _compared(times, ready, case.required.forward)
    checks = [found.pop("check")]
    checks.append(check("routing", times.ratio("routing", "ours").median, case.required.routing, at_most=True))
    checks.append(check("speed-up", found["speedup"], case.required.speedup))
    return record("forward", ready, setting, times, ready.layout.flops(case.head_dim)) | found | {"checks": checks}


def gradients(case: Case, setting: Setting) -> Record:
    """Time attention_grads, which includes the forward, beside forward and backward of dense attention."""
    ready = checked(case, setting)
    given, spec = ready.inputs, case.spec()

    def ours() -> Any:
        return setting.call(moc.attention_grads, given.q, given.k, given.v, spec, given.d_out)

    grads = dict(zip(("dq", "dk", "dv"), ours(), strict=True))
    asked = refcheck.Question(case.name, spec, given)
    ready.errors["dq"] = refcheck.check(asked, ready.layout.selected, {"dq": grads["dq"]})["dq"]
    ready.errors["identities"] = refkeys.check_identities(asked, grads)
    ready.errors["small_copy"] = small.check_gradients(case, setting.backend)
    times = interleaved({"ours": ours, **dense.beside(given, setting.threads, "gradients")}, setting.rounds)
    found = _compared(times, ready, case.required.gradients)
    checks = [found.pop("check")]
    # Two matrix products in the forward, five in the backward.
    flops = ready.layout.flops(case.head_dim) * 7 // 2
    return record("gradients", ready, setting, times, flops) | found | {"checks": checks}


def growth(case: Case, setting: Setting) -> Iterator[Record]:
    """Time the forward at every length of a sweep, all lengths in each round, and yield a record for each."""
    rows = {size: refcheck.ROWS if size <= LONGEST_DENSE else LONG_ROWS for size in case.sizes}
    ready = {size: checked(case.at(size), setting, rows[size]) for size in case.sizes}
    calls = {f"ours {size}": attention(one.case, one.inputs, setting) for size, one in ready.items()}
    for size in case.sizes:
        if size <= LONGEST_DENSE:
            beside = dense.beside(ready[size].inputs, setting.threads, "forward")
            calls |= {f"dense {size}": call for call in beside.values()}
    times = interleaved(calls, setting.rounds)
    measured = [size for size in case.sizes if f"dense {size}" in calls]
    for size, one in ready.items():
        own = Times({"ours": times.seconds[f"ours {size}"]})
        per_pair = one.layout.pairs() / ready[case.base].layout.pairs()
        factor = times.ratio(f"ours {size}", f"ours {case.base}").median / per_pair
        required = case.required.growth if size == max(case.sizes) else None
        yield (
            record("growth", one, setting, own, one.layout.flops(case.head_dim))
            | {"ns_per_pair": own.summary("ours").median / one.layout.pairs() * 1e9}
            | {"dense": _dense_at(size, measured, times)}
            | {"checks": [check("growth", factor, required, at_most=True)]}
        )


def _dense_at(size: int, measured: list[int], times: Times) -> Record | None:
    """Return the time of dense attention: measured, or extrapolated with the square of the length, and which."""
    if not measured:
        return None
    nearest = size if size in measured else max(measured)
    seconds = times.summary(f"dense {nearest}").median * (size / nearest) ** 2
    return {"seconds": seconds, "extrapolated_from": None if nearest == size else nearest}


def peak_memory(case: Case, setting: Setting) -> Record:
    """Run one call in a fresh process and compare its peak with the bytes of q, k, v and out."""
    ready = checked(case, setting, LONG_ROWS)
    found = memory.in_fresh_process(case, setting.backend)
    whole, above = (found[name] / found["arrays"] for name in ("peak", "above_baseline"))
    checks = [check("memory", whole, case.required.memory, at_most=True)]
    checks.append(check("memory, net", above))
    flops = ready.layout.flops(case.head_dim)
    return record("memory", ready, setting, Times({}), flops) | {"bytes": found} | {"checks": checks}


def _compared(times: Times, ready: Ready, required: float | None) -> Record:
    """Return the figures beside dense attention; None where it was not measured."""
    speedup = times.ratio("dense", "ours").median if "dense" in times.seconds else None
    share = None if speedup is None else speedup / ready.pair_ratio
    return {
        "speedup": speedup,
        "share": share,
        "required_share": required,
        "check": check("share", share, required),
    }


def check(what: str, value: float | None, required: float | None = None, at_most: bool = False) -> Record:
    """Return a figure beside what is required of it; `met` is None where nothing is, or nothing was measured."""
    if value is None or required is None:
        return {"what": what, "value": value, "required": required, "met": None}
    met = value <= required if at_most else value > required  # exactly as fast as dense attention is not faster
    return {"what": what, "value": value, "required": required, "met": met}


def problem_of(case: Case, layout: moc.Layout, mode: str) -> Problem:
    """Return the problem as the backend is asked about it."""
    return Problem(
        plan=layout.plan,
        framework="numpy",
        device="cpu",
        dtype="float32",
        batch=1,
        heads=case.heads,
        kv_heads=case.heads,
        head_dim=case.head_dim,
        v_head_dim=case.head_dim,
        backward=mode == "gradients",
    )


def record(mode: str, ready: Ready, setting: Setting, times: Times, flops: int) -> Record:
    """Return the fields that every record has."""
    case, layout = ready.case, ready.layout
    problem = problem_of(case, layout, mode)
    config, _ = configs.used(get_backend(setting.backend), problem, ["attend"])
    seconds = {name: asdict(times.summary(name)) for name in times.seconds}
    return {
        "case": case.name,
        "mode": mode,
        "tokens": case.tokens,
        "heads": case.heads,
        "head_dim": case.head_dim,
        "dtype": "float32",
        "spec": json.loads(case.spec().to_json()),
        "pairs": layout.pairs(),
        "density": layout.density(),
        "pair_ratio": ready.pair_ratio,
        "backend": setting.backend,
        "config": config["attend"],
        "rounds": setting.rounds,
        "seconds": seconds,
        "useful_flops": flops,
        "gflops": flops / seconds["ours"]["median"] / 1e9 if "ours" in seconds else None,
        "refcheck": ready.errors,
        **machine.facts(setting.backend, setting.threads),
    }
