"""Contenders: what computes a setting, a backend or a peer, and how its call is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sparsemoc as moc
from bench.inputs import Inputs
from bench.record import Setting
from sparsemoc.backends import Backend, Problem, get_backend
from sparsemoc.backends.protocol import OPERATIONS, Operation
from sparsemoc.spec.errors import UnsupportedError

Outputs = Mapping[str, Any]
Call = Callable[[], Outputs]

#: Most (head, query, key) triples for the reference: it is there for tiny problems.
REFERENCE_PAIRS = 2**23
#: The operations of a call of each mode.
OPERATIONS_OF: dict[str, tuple[Operation, ...]] = {
    "forward": OPERATIONS[:3],
    "forward+backward": OPERATIONS,
    "route": OPERATIONS[:2],
    "attend": OPERATIONS[2:3],
}


class LeftOutError(Exception):
    """Why a contender has no time, as it stands in its record."""


@dataclass(eq=False, kw_only=True)
class Contender:
    """One way to compute a setting.

    Attributes:
        name, kind, computes, note: see `bench.record`.
        flops: operations that a call really does; share: of the peak that it may reach, before it is known.
        bytes: temporary memory of a call that is worth minding.
        prepare: makes the call that is timed. It gives arrays by name: "out", "lse", "dq", "dk", "dv", "selected".
        more: further results of the same computation, for the check.
        routing: pooling and routing alone, where the call contains them.
        backend, problem: of a backend's call.
    """

    name: str
    kind: str
    computes: str
    flops: float
    prepare: Callable[[], Call]
    share: float = 0.5
    bytes: int = 0
    note: str = ""
    more: Call | None = None
    routing: Call | None = None
    backend: Backend | None = None
    problem: Problem | None = None

    @property
    def tunable(self) -> bool:
        """Whether tuning its call may find something: on the CPU kernels for a GPU are interpreted."""
        return self.problem is not None and (self.problem.device == "cuda" or self.problem.framework == "numpy")


def backends(names: Iterable[str], setting: Setting, x: Inputs, layout: moc.Layout) -> Iterator[Contender]:
    """Yield a contender for each backend; one that cannot run says so when it is prepared.

    Args:
        names: of backends, absent ones too.
        setting: what is computed.
        x: its arrays.
        layout: what "attend" is given.
    """
    for name in names:
        yield _backend(name, setting, x, layout)


def absent(name: str, setting: Setting, reason: str) -> Contender:
    """Return a backend that has no time, and says why."""
    return Contender(
        name=name, kind="backend", computes="moc", flops=float(setting.flops("moc")), prepare=_refusing(reason)
    )


def _backend(name: str, setting: Setting, x: Inputs, layout: moc.Layout) -> Contender:
    try:
        backend = get_backend(name, "bench.run")
        problem, arrays = asked(backend, setting, x)
    except (UnsupportedError, LeftOutError) as error:
        return absent(name, setting, f"refused: {first_line(error)}")
    refused = backend.refuses(problem)
    if refused is not None:
        return absent(name, setting, f"refused: {name} {refused}")
    triples = setting.problem.heads * setting.problem.queries * setting.problem.tokens
    if name == "reference" and triples > REFERENCE_PAIRS:
        most = f"at most {REFERENCE_PAIRS:,} (head, query, key) triples, here {triples:,}"
        return absent(name, setting, f"skipped: the reference is for tiny problems, {most}")
    calls = _Calls(name, setting, arrays, layout)
    call, more = calls.of(setting.mode)
    routing = calls.route if setting.mode == "forward" else None
    return Contender(
        name=name, kind="backend", computes="moc", flops=float(setting.flops("moc")), prepare=lambda: call, more=more,
        routing=routing, backend=backend, problem=problem,
    )  # fmt: skip


def asked(backend: Backend, setting: Setting, x: Inputs) -> tuple[Problem, tuple[Any, Any, Any, Any]]:
    """Return a setting as a backend is asked about it, and the arrays in a library that it takes.

    Raises:
        LeftOutError: it takes none that is installed.
    """
    native = "torch" if x.device == "cuda" else "numpy"
    arrays, framework = x.all, native
    if native not in backend.capabilities.frameworks and "torch" in backend.capabilities.frameworks:
        try:
            arrays, framework = x.tensors(), "torch"
        except ImportError as error:
            raise LeftOutError(f"takes torch tensors, but {error}") from None
    one = setting.problem
    problem = Problem(
        plan=setting.plan, framework=framework, device=x.device, dtype=setting.dtype, batch=1, heads=one.heads,
        kv_heads=one.kv_heads, head_dim=one.head_dim, v_head_dim=one.v_head_dim,
        backward=setting.mode == "forward+backward",
    )  # fmt: skip
    return problem, arrays


def _refusing(reason: str) -> Callable[[], Call]:
    def prepare() -> Call:
        raise LeftOutError(reason)

    return prepare


@dataclass(frozen=True, eq=False)
class _Calls:
    """The public calls of a backend on the arrays of a setting."""

    name: str
    setting: Setting
    arrays: tuple[Any, Any, Any, Any]
    layout: moc.Layout

    def of(self, mode: str) -> tuple[Call, Call | None]:
        """Return the call that is timed, and the one that gives what else the check needs."""
        return {
            "forward": (self.forward, self.whole),
            "forward+backward": (self.gradients, self.whole),
            "route": (self.route, None),
            "attend": (self.attend, self.attended),
        }[mode]

    def forward(self) -> Outputs:
        return {"out": moc.attention(*self.arrays[:3], self.setting.problem.spec, backend=self.name)}

    def whole(self) -> Outputs:
        q, k, v, _ = self.arrays
        spec = self.setting.problem.spec
        out, lse, layout = moc.attention(q, k, v, spec, return_lse=True, return_layout=True, backend=self.name)
        return {"out": out, "lse": lse, "selected": layout.selected}

    def gradients(self) -> Outputs:
        q, k, v, d_out = self.arrays
        grads = moc.attention_grads(q, k, v, self.setting.problem.spec, d_out, backend=self.name)
        return dict(zip(("dq", "dk", "dv"), grads, strict=True))

    def route(self) -> Outputs:
        q, k, _, _ = self.arrays
        return {"selected": moc.route(q, k, self.setting.problem.spec, backend=self.name).selected}

    def attend(self) -> Outputs:
        return {"out": moc.attend(*self.arrays[:3], self.layout, backend=self.name)}

    def attended(self) -> Outputs:
        out, lse = moc.attend(*self.arrays[:3], self.layout, return_lse=True, backend=self.name)
        return {"out": out, "lse": lse}


def peers(
    sources: Iterable[Callable[..., Any]], setting: Setting, x: Inputs, layout: moc.Layout
) -> Iterator[Contender]:
    """Yield the peers of a setting: see `bench.peers`."""
    for source in sources:
        for one in source(setting.problem, setting.plan, layout, x, setting.mode):
            yield Contender(
                name=one.name, kind="peer", computes=one.computes, flops=one.flops, share=one.share, bytes=one.bytes,
                note=one.note, prepare=one.prepare,
            )  # fmt: skip


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
