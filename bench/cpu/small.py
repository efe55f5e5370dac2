"""The check of whole gradients, on a small copy of a case."""

from __future__ import annotations

from typing import Any

import sparsemoc as moc
from bench import refcheck
from bench.cpu.cases import Case, inputs
from sparsemoc.testing import oracle
from sparsemoc.testing.sample import Sample

#: Tokens and heads of the copy.
TOKENS, HEADS = 1024, 2


def check_gradients(case: Case, backend: str) -> dict[str, Any]:
    """Check dq, dk and dv whole on a small copy of a case.

    Raises:
        RefcheckError: a value is wrong.
    """
    small = case.shrunk(min(TOKENS, case.tokens), min(HEADS, case.heads))
    given, spec = inputs(small), small.spec()
    grads = moc.attention_grads(given.q, given.k, given.v, spec, given.d_out, backend=backend)
    layout = moc.route(given.q, given.k, spec, backend=backend)
    sample = Sample(spec, small.stream(), given.q[0], given.k[0], given.v[0])
    mask = oracle.mask_of(sample, layout.selected[0])
    got = {name: grad[0] for name, grad in zip(("dq", "dk", "dv"), grads, strict=True)}
    errors = {name: refcheck.Error() for name in got}
    refcheck.compare(sample, mask, "float32", got, given.d_out[0], errors)
    return {"tokens": small.tokens, "heads": small.heads, **refcheck.judged(f"{case.name} (small)", errors)}
