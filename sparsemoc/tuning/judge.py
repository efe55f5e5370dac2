"""The judge: no config wins whose results are wrong.

The backend's default is compared with the reference on sampled queries (gradients: with d_out and d_lse set to 0 at all
others, so that dq, dk and dv are sums over the sampled ones). Every other config is compared with the reference on the
same queries, and its whole results with the default's, row by row: see `expected`, `whole` and `judge_routes`.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from sparsemoc.backends.protocol import lse_dtype
from sparsemoc.spec.host import dtype_name, is_cupy
from sparsemoc.tuning import expected as rules
from sparsemoc.tuning.expected import Expected
from sparsemoc.tuning.judge_routes import RouteJudge
from sparsemoc.tuning.sampled import parts_of, wide
from sparsemoc.tuning.whole import Whole, unlike
from sparsemoc.tuning.work import Work

#: What each operation gives.
RESULTS = {
    "pool": ("centroids",), "route": ("selected",), "attend": ("out", "lse"), "attend_backward": ("dq", "dk", "dv"),
}  # fmt: skip


class Verdict(NamedTuple):
    """What the judge says.

    Attributes:
        reason: what is wrong, with the numbers; None if nothing is.
        share: largest error at a sampled row as a share of what is allowed there.
    """

    reason: str | None
    share: float = 0.0


class Judge:
    """The judge of an operation on its actual arguments. `default` comes first."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._expected: list[Expected] = []
        self._whole: list[Whole] = []
        self._selected: Any = None

    def default(self, given: Any) -> Verdict:
        """Compare what the backend's default has given with the reference."""
        results = _named(self._work.operation, given)
        reason = self._misshapen(results)
        if reason is not None:
            return Verdict(reason)
        if self._work.operation == "route":
            self._selected = results["selected"]
            return Verdict(self._routes().whole(self._selected))
        problem, arguments = self._work.problem, self._work.arguments
        with np.errstate(all="ignore"):
            if self._work.operation == "pool":
                self._expected = rules.pooled(problem, *arguments)
            elif self._work.operation == "attend":
                self._expected = rules.attended(problem, *arguments)
            else:
                self._expected = rules.gradients(problem, *arguments)
        sampled = results
        if self._work.operation == "attend_backward":
            sampled = _named("attend_backward", sampled_only(self._work).run(None))
        verdict = self._sampled(sampled, RESULTS[self._work.operation])
        if verdict.reason is None:
            self._whole = [Whole(name, result, self._expected) for name, result in results.items()]
        return verdict

    def candidate(self, config: Any) -> Verdict:
        """Run another config and compare it with the reference and with the default.

        Of its gradients dq alone is compared with the reference: dk and dv are sums over all queries, which the
        reference would need long for, and those of the default stand for it.
        """
        results = _named(self._work.operation, self._work.run(config))
        reason = self._misshapen(results)
        if reason is not None:
            return Verdict(reason)
        if self._work.operation == "route":
            return Verdict(self._routes().against(results["selected"], self._selected))
        names = ("dq",) if self._work.operation == "attend_backward" else RESULTS[self._work.operation]
        verdict = self._sampled(results, names)
        if verdict.reason is not None:
            return verdict
        wrong = (whole.wrong(result) for whole, result in zip(self._whole, results.values(), strict=True))
        return Verdict(next((reason for reason in wrong if reason is not None), None), verdict.share)

    def _routes(self) -> RouteJudge:
        return RouteJudge(self._work.problem, *self._work.arguments)

    def _misshapen(self, results: dict[str, Any]) -> str | None:
        problem, first = self._work.problem, self._work.arguments[0]
        plan, rows, own = problem.plan, first.shape[0], dtype_name(first)
        chunks = sum(one.chunks for one in plan.samples) if plan.packed else plan.chunks
        queries = (rows, plan.q_tokens, problem.heads)
        shapes = {
            "centroids": ((rows, problem.kv_heads, chunks, problem.head_dim), "float32"),
            "selected": ((rows, problem.heads, plan.q_tokens, plan.slots), "int32"),
            "out": ((*queries, problem.v_head_dim), own),
            "lse": ((rows, problem.heads, plan.q_tokens), str(lse_dtype(problem.dtype))),
        }
        if self._work.operation == "attend_backward":
            given = zip(RESULTS["attend_backward"], self._work.arguments, strict=False)
            shapes = {name: (tuple(array.shape), dtype_name(array)) for name, array in given}
        reasons = (unlike(name, result, *shapes[name]) for name, result in results.items())
        return next((reason for reason in reasons if reason is not None), None)

    def _sampled(self, results: dict[str, Any], names: tuple[str, ...]) -> Verdict:
        """Compare results with what the reference says of sampled rows."""
        largest = 0.0
        for one in self._expected:
            if one.name not in names:
                continue
            got = wide(results[one.name][one.place]).reshape(one.truth.shape)
            with np.errstate(all="ignore"):
                errors = rules.norms(rules.apart(got, one.truth))
                wrong = np.flatnonzero(~(errors <= one.allowed))
                shares = np.where(errors > 0, errors / one.allowed, 0)
            if len(wrong):
                at, place = wrong[0], _text(one.place)
                return Verdict(
                    f"{one.name}[{place}] is {errors[at]:.3g} off the reference's at row {at}, where "
                    f"{one.allowed[at]:.3g} is allowed; {len(wrong)} of its {len(errors)} rows are"
                )
            largest = max(largest, float(np.nan_to_num(shares).max(initial=0)))
        return Verdict(None, largest)


def _named(operation: str, results: Any) -> dict[str, Any]:
    names = RESULTS[operation]
    return dict(zip(names, results if len(names) > 1 else (results,), strict=True))


def _text(place: tuple[Any, ...]) -> str:
    return ", ".join(f"{one.start}:{one.stop}" if isinstance(one, slice) else str(one) for one in place)


def sampled_only(work: Work) -> Work:
    """Return an `attend_backward` whose d_out and d_lse are 0 but at the sampled queries."""
    *given, d_out, d_lse = work.arguments
    layout = given[3]
    mask = np.zeros((*d_out.shape[:3], 1), bool)
    for part in parts_of(work.problem, layout.key_lengths):
        for block in part.blocks:
            mask[part.queries(block)] = True
    logs = None if d_lse is None else _masked(d_lse, np.swapaxes(mask[..., 0], 1, 2))
    return replace(work, arguments=(*given, _masked(d_out, mask), logs))


def _masked(array: Any, mask: np.ndarray[Any, Any]) -> Any:
    """Return an array with 0 where a mask says so, in its own library and dtype."""
    if isinstance(array, np.ndarray):
        return np.where(mask, array, np.zeros((), array.dtype))
    if hasattr(array, "detach"):
        torch = import_module("torch")
        return array.detach() * torch.from_numpy(mask).to(array.device)
    if is_cupy(array):
        return array * import_module("cupy").asarray(mask).astype(array.dtype)
    return array * import_module("jax").numpy.asarray(mask, array.dtype)
