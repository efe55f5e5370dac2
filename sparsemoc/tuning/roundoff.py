"""How far correct results may be off: roundoffs of a problem, by which `expected` widens what the reference says.

A row of a result (its channels, by their Euclidean norm) may be off by twice the error that the reference makes in the
working dtype, and by two terms more:

    u N c |a|        working precision: u = 2^-24 (float64: 2^-53); N = 16 + 2 sum sqrt(lengths of the sums);
                     c = 1 + |scale| max_j sum_l |q_l| |k_jl| is the conditioning of the logits; a is the sum with
                     absolute values in place of all factors
    4 u_in (|x| + s) input precision, where P, dS and the result are rounded to it: 2^-11 for float16 and for tf32, 2^-8
                     for bfloat16; s is the root of the sum of the squares of the terms. These roundings are many and
                     unlike each other: the sum of the sizes would allow a half-precision result to be anything.

Where u c > 2^-7 a logit is uncertain by a percent and more: the reference cannot say what is right there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsemoc.backends import Problem

_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
_TF32 = 2.0**-11
_SUBNORMAL = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}


@dataclass(frozen=True)
class Roundoff:
    """The roundoffs of a problem.

    Attributes:
        working: of sums, u.
        factors: of what stands in products, u_in.
        logits: of q and k in the products that give logits, beyond u; 0 unless tf32 was asked for.
        least: below which a factor in a product loses digits, as a multiple of u_in.
        tiny: what never counts in a result of the input dtype.
    """

    working: float
    factors: float
    logits: float
    least: float
    tiny: float

    @classmethod
    def of(cls, problem: Problem) -> Roundoff:
        """Return the roundoffs of a problem."""
        tf32 = problem.options.precision == "tf32"
        factors = max(_ROUNDOFF[problem.dtype], _TF32 if tf32 else 0.0)
        subnormal = _SUBNORMAL[problem.dtype]
        working = _ROUNDOFF["float64" if problem.dtype == "float64" else "float32"]
        # A float32 backend may flush subnormals, and their products, to 0.
        tiny = max(subnormal, 2.0**-960 if problem.dtype == "float64" else 2.0**-100)
        return cls(working, factors, _TF32 if tf32 else 0.0, subnormal / factors, tiny)

    def limit(self, conditioning: float) -> bool:
        """Return whether a logit is too uncertain to say anything."""
        return not conditioning * self.working <= 2.0**-7

    def sums(self, *lengths: int) -> float:
        """Return u N of sums of these lengths."""
        return self.working * (16 + 2 * float(np.sqrt(lengths).sum()))
