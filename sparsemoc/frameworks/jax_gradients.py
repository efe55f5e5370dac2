"""The derivative of attention in JAX: reverse mode, once, of out and of lse."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax

from sparsemoc.backends import Result, choose
from sparsemoc.frameworks import jax_call
from sparsemoc.frameworks.execution import Execution
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.layout import Layout

NAME = "jax"


class Attention(NamedTuple):
    """What is known of a call before there are arrays."""

    run: Execution
    scale: float

    def layout(self, selected: Any, key_lengths: Any) -> Layout:
        """Return the layout of these arrays."""
        return Layout(selected, self.run.problem.plan, key_lengths)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(which: Attention, q: Any, k: Any, v: Any, selected: Any, key_lengths: Any) -> Result:
    """Return out and lse; the choice of chunks is hard, so nothing flows through the layout."""
    run, scale = which
    if run.problem.framework == NAME:
        return run.compute_forward(q, k, v, which.layout(selected, key_lengths), scale)
    return jax_call.attend(run, scale, q, k, v, selected, key_lengths)


def _forward(which: Attention, *arrays: Any) -> tuple[Result, tuple[Any, ...]]:
    # Only here is it known that gradients are asked for.
    problem = replace(which.run.problem, backward=True)
    choose(problem, which.run.backend, "attention")  # raises where the backend has none
    result = attend(which._replace(run=replace(which.run, problem=problem)), *arrays)
    return result, (*arrays, *result)


def _backward(which: Attention, kept: tuple[Any, ...], d_result: Result) -> tuple[Any, ...]:
    which = which._replace(run=replace(which.run, problem=replace(which.run.problem, backward=True)))
    return (*gradients(which, *kept, *d_result), None, None)


attend.defvjp(_forward, _backward)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def gradients(
    which: Attention,
    q: Any,
    k: Any,
    v: Any,
    selected: Any,
    key_lengths: Any,
    out: Any,
    lse: Any,
    d_out: Any,
    d_lse: Any,
) -> tuple[Any, Any, Any]:
    """Return dq, dk, dv."""
    run, scale = which
    if run.problem.framework == NAME:
        layout = which.layout(selected, key_lengths)
        return run.compute_backward(q, k, v, layout, scale, Result(out, lse), d_out, d_lse)
    return jax_call.backward(run, scale, q, k, v, selected, key_lengths, out, lse, d_out, d_lse)


@gradients.defjvp
def _second(which: Attention, primals: Any, tangents: Any) -> Any:
    raise UnsupportedError(
        "attention: gradients must be taken once, got a second derivative: there is none of the gradients. "
        "Hint: take them of jax.lax.stop_gradient of q, k and v."
    )
