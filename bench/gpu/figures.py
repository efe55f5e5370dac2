"""Sections of whole settings: attention beside every dense kernel on the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sparsemoc as moc
from bench.gpu import counts, peers, settings, truth
from bench.gpu.clock import Call, interleaved, replayed, usable, wait
from bench.gpu.report import Report
from bench.gpu.settings import Arrays, Setting
from bench.peers.peer import first_line
from bench.timing import Times
from sparsemoc.backends import get_backend

#: Rounds of calls that take milliseconds, and of those that take seconds.
ROUNDS, FEW_ROUNDS = 7, 2
#: The prefix of our own calls, before the name of the anchor engine.
OURS = "ours, "
#: The backends that are timed beside another of ours, and what its calls are called.
RIVALS, TRITON = {"cupy": "triton"}, "+ Triton"


def engines(setting: Setting) -> tuple[str, ...]:
    """Return the anchor engines of the backend: "own", and the providers."""
    return get_backend(setting.backend).capabilities.anchor_engines


def forward(setting: Setting, x: Arrays, engine: str) -> Call:
    """Return the call of attention, routing included."""
    options = moc.Options(anchors=engine)
    return lambda: moc.attention(*x.qkv, setting.spec, deterministic=False, backend=setting.backend, options=options)


def gradients(setting: Setting, x: Arrays, engine: str, deterministic: bool = False) -> Call:
    """Return the call of attention_grads: routing, forward and backward."""
    options = moc.Options(anchors=engine)
    return lambda: moc.attention_grads(
        *x.qkv, setting.spec, x.d_out, deterministic=deterministic, backend=setting.backend, options=options
    )


def ours(setting: Setting, x: Arrays, mode: str) -> dict[str, Call]:
    """Return our calls of a mode by engine, with the prefix."""
    make = forward if mode == "forward" else gradients
    return {f"{OURS}{engine}": make(setting, x, engine) for engine in engines(setting)}


def checked(report: Report, setting: Setting, x: Arrays, *, backward: bool = True) -> tuple[moc.Layout, dict[str, Any]]:
    """Compute everything once, hold it against float64, and return the layout and the results.

    Raises:
        WrongError: a result is wrong.
    """
    out, lse, layout = moc.attention(
        *x.qkv, setting.spec, deterministic=False, backend=setting.backend, return_lse=True, return_layout=True
    )
    results = {"out": out, "lse": lse}
    if backward:
        results |= zip(("dq", "dk", "dv"), gradients(setting, x, "auto")(), strict=True)
    compare(report, setting, x, layout, results, "float64 on sampled rows", routes=True)
    providers(report, setting, x, layout)
    return layout, results


def compare(
    report: Report,
    setting: Setting,
    x: Arrays,
    layout: moc.Layout,
    results: dict[str, Any],
    name: str,
    *,
    routes: bool = False,
) -> None:
    """Hold results against float64, and tell; see `truth.check`.

    Raises:
        WrongError: a result is wrong.
    """
    try:
        detail = truth.check(setting, x, layout, results, routes=routes)
    except truth.WrongError as error:
        report.check(setting.name, name, False, str(error))
        raise
    report.check(setting.name, name, True, **detail)


def providers(report: Report, setting: Setting, x: Arrays, layout: moc.Layout) -> None:
    """Hold out and lse of the anchor engines that are not our own against float64.

    Raises:
        WrongError: a result is wrong.
    """
    q, k, v = x.qkv
    for engine in engines(setting)[1:]:  # after "own"
        options = moc.Options(anchors=engine)
        try:
            out, lse = moc.attend(
                q, k, v, layout, deterministic=False, backend=setting.backend, options=options, return_lse=True
            )
        except moc.UnsupportedError:  # its reason is told where it would be timed
            continue
        compare(report, setting, x, layout, {"out": out, "lse": lse}, f"float64 on sampled rows, {engine}")


def rival(report: Report, setting: Setting, make: Callable[[Setting], Call]) -> dict[str, Call]:
    """Return the call of the backend that this one is to be no slower than, on its own kernels, if there is one.

    Args:
        report: where it is told that it cannot run.
        setting: of this backend.
        make: a call of a setting.
    """
    if setting.backend not in RIVALS:
        return {}
    other = replace(setting, backend=RIVALS[setting.backend])

    def first() -> Any:
        return make(other)()  # what is made ready for a call may already be refused

    return {TRITON: make(other)} if usable(report, setting.name, {TRITON: first}, peers=True) else {}


def rivalry(report: Report, setting: Setting, figure: str, times: Times, own: str, other: str) -> None:
    """Tell how many times as fast as the other backend's call our own is, where both were timed."""
    if other in times.seconds and own in times.seconds:
        report.figure(setting.name, f"{figure}, beside Triton", times.ratio(other, own).median, "x Triton")


@dataclass(frozen=True, eq=False)
class Beside:
    """Our calls and dense kernels, timed in turns."""

    times: Times

    def best(self, our: bool) -> str | None:
        """Return the fastest of our engines, or of the dense kernels; None where none ran."""
        names = [name for name in self.times.seconds if name.startswith(OURS) == our and not name.startswith("+")]
        return min(names, key=lambda name: self.times.summary(name).median, default=None)


def beside(
    report: Report, setting: Setting, x: Arrays, mode: str, rounds: int, more: Mapping[str, Call] | None = None
) -> Beside:
    """Time our engines, every dense kernel, and what else is given, in turns; tell the times.

    Args:
        report, setting, x: as everywhere.
        mode: "forward" or "forward and backward".
        rounds: of the timing.
        more: calls that are neither ours under a plain engine nor dense, by names that begin with "+".
    """
    make = peers.forward if mode == "forward" else peers.gradients
    dense = {name: make(attend, x) for name, attend in peers.dense(setting.causal, report.setup).items()}
    calls = usable(report, setting.name, ours(setting, x, mode))
    calls |= usable(report, setting.name, dense, peers=True) | dict(more or {})
    own = forward if mode == "forward" else gradients
    calls |= rival(report, setting, lambda by: own(by, x, "own"))
    found = Beside(interleaved(calls, rounds, report.setup))
    report.times(setting.name, mode, found.times)
    rivalry(report, setting, mode, found.times, f"{OURS}own", TRITON)
    return found


def speedup(report: Report, setting: Setting, figure: str, found: Beside) -> None:
    """Tell how many times as fast as the best dense kernel the best engine is, and our own beside it."""
    dense, best = found.best(our=False), found.best(our=True)
    if dense is None or best is None:
        report.skip(setting.name, figure, "no dense kernel ran on this machine" if best else "no engine ran")
        return
    for name, told in ((best, figure), (f"{OURS}own", f"{figure}, own anchors")):
        ratio = found.times.ratio(dense, name)
        report.figure(
            setting.name, told, ratio.median, "x dense", p20=ratio.p20, p80=ratio.p80, engine=name, dense=dense
        )  # fmt: skip


def deterministic(report: Report, setting: Setting, found: Beside) -> None:
    """Tell what deterministic mode costs, where it was timed."""
    if "+ deterministic" in found.times.seconds:
        ratio = found.times.ratio("+ deterministic", f"{OURS}own").median
        report.figure(setting.name, "deterministic", ratio, "x default")


def paper(report: Report) -> None:
    """The paper's multi-shot setting: speed, what routing takes, what determinism costs, memory."""
    setting = settings.setting("paper", report.setup)
    x = settings.arrays(setting, report.setup)
    layout, _ = checked(report, setting, x)
    routing = {"+ routing": lambda: moc.route(x.q, x.k, setting.spec, backend=setting.backend)}
    found = beside(report, setting, x, "forward", FEW_ROUNDS + 1, routing)
    speedup(report, setting, "forward", found)
    best = found.best(our=True)
    assert best is not None, "our own engine refuses nothing here"
    share = found.times.ratio("+ routing", best).median
    report.figure(setting.name, "routing share", share * 100, "%", engine=best)
    kept = counts.pairs(layout)
    rate = counts.flops(kept, setting.head_dim, counts.FORWARD) / found.times.summary(best).median / 1e12
    bound = counts.dense_pairs(setting) / kept
    report.figure(setting.name, "forward rate", rate, "TFLOP/s", pairs=kept, dense_pairs_over_pairs=bound)
    _memory(report, setting, x, best.removeprefix(OURS))
    mode = "forward and backward"
    more = {"+ deterministic": gradients(setting, x, "own", deterministic=True)}
    found = beside(report, setting, x, mode, FEW_ROUNDS, usable(report, setting.name, more))
    speedup(report, setting, mode, found)
    deterministic(report, setting, found)


def _memory(report: Report, setting: Setting, x: Arrays, engine: str) -> None:
    """Tell the most memory beside inputs, outputs, and what autograd keeps from the forward."""
    if not report.setup.cuda:
        report.skip(setting.name, "memory", "torch counts the memory of CUDA devices only")
        return
    import torch

    def measured(call: Call) -> tuple[Any, float]:
        wait(report.setup)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made = call()
        wait(report.setup)
        outputs = sum(array.nbytes for array in made)
        return made, (torch.cuda.max_memory_allocated() - before - outputs) / 1e9

    _, used = measured(lambda: [forward(setting, x, engine)()])
    report.figure(setting.name, "forward memory", used, "GB", engine=engine)
    q, k, v = (array.detach().requires_grad_() for array in x.qkv)
    leaves = Arrays(q, k, v, x.d_out)
    out = forward(setting, leaves, engine)()
    _, used = measured(lambda: torch.autograd.grad(out, leaves.qkv, x.d_out))
    report.figure(setting.name, "backward memory", used, "GB", engine=engine)


def wan(report: Report) -> None:
    """The token grid of Wan 14B at 720p: a chunk to a frame, own frame as anchor."""
    setting = settings.setting("wan", report.setup)
    x = settings.arrays(setting, report.setup)
    checked(report, setting, x, backward=False)
    speedup(report, setting, "forward", beside(report, setting, x, "forward", FEW_ROUNDS + 1))


def short(report: Report) -> None:
    """A short stream: routing must not lose to dense attention; also with CUDA graphs, and beside FlexAttention."""
    setting = settings.setting("short", report.setup)
    x = settings.arrays(setting, report.setup)
    layout, _ = checked(report, setting, x)
    for mode in ("forward", "forward and backward"):
        found = beside(report, setting, x, mode, ROUNDS)
        speedup(report, setting, mode, found)
        _graphed(report, setting, x, mode, found)
    _flex(report, setting, x, layout)


def _graphed(report: Report, setting: Setting, x: Arrays, mode: str, found: Beside) -> None:
    """Tell the speed-up of a replayed graph over a replayed graph of the best dense kernel."""
    dense, best = found.best(our=False), found.best(our=True)
    if not report.setup.cuda or dense is None or best is None:
        report.skip(setting.name, f"{mode}, CUDA graphs", "there is no CUDA device" if dense else "no dense kernel ran")
        return
    make = peers.forward if mode == "forward" else peers.gradients
    plain = {"ours": ours(setting, x, mode)[best], "dense": make(peers.dense(setting.causal, report.setup)[dense], x)}
    try:
        times = interleaved({name: replayed(call) for name, call in plain.items()}, ROUNDS, report.setup)
    except Exception as error:  # noqa: BLE001  a capture that breaks is for the section on graphs to judge
        report.skip(setting.name, f"{mode}, CUDA graphs", first_line(error))
        return
    report.times(setting.name, f"{mode}, CUDA graphs", times)
    ratio = times.ratio("dense", "ours").median
    report.figure(setting.name, f"{mode}, CUDA graphs", ratio, "x dense", engine=best, dense=dense)


def _flex(report: Report, setting: Setting, x: Arrays, layout: moc.Layout) -> None:
    """Tell how many times as fast as compiled FlexAttention, under the same mask, we are."""
    if not report.setup.cuda:
        report.skip(setting.name, "FlexAttention", "its compiled kernels are measured on CUDA devices only")
        return
    try:
        attend = peers.flex(layout)
    except Exception as error:  # noqa: BLE001  a peer that cannot run here is left out
        report.skip(setting.name, "FlexAttention", first_line(error))
        return
    for mode, make in (("forward", peers.forward), ("forward and backward", peers.gradients)):
        calls = usable(report, setting.name, {"FlexAttention": make(attend, x)}, peers=True)
        if calls:
            own = forward if mode == "forward" else gradients
            times = interleaved(calls | {"ours": own(setting, x, "own")}, ROUNDS, report.setup)
            report.times(setting.name, f"{mode}, beside FlexAttention", times)
            ratio = times.ratio("FlexAttention", "ours").median
            report.figure(setting.name, f"{mode}, beside FlexAttention", ratio, "x FlexAttention")
