"""Planted wrong implementations: faults of the gradients."""

# ruff: noqa: D102  the steps that variants override are described in OracleImplementation
from __future__ import annotations

import numpy as np

from sparsemoc.testing import oracle
from sparsemoc.testing.oracle_rules import Routes
from sparsemoc.testing.planted import Planted, shortened
from sparsemoc.testing.sample import Floats, Sample

Arrays = tuple[Floats, Floats, Floats]


class _WrongGradients(Planted):
    """Attends rightly; its gradients are wrong."""

    caught_by = "backward"


class DqOfAnchorsOnly(_WrongGradients):
    """dq lacks the term of the routed keys."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        q, k, v = arrays
        mask, heads = self.mask(sample, selected), sample.key_heads
        weights, _ = oracle.probabilities(q, k, mask, sample.factor)
        out, _ = oracle.attention(q, k, v, mask, sample.factor)
        delta = np.einsum("ihc,ihc->hi", d_out, out) - d_lse
        d_logits = weights * (np.einsum("ihc,jhc->hij", d_out, v[:, heads]) - delta[:, :, None])
        anchored = np.where(oracle.routed_mask(sample, selected), 0, d_logits)
        dq = sample.factor * np.einsum("hij,jhd->ihd", anchored, k[:, heads])
        return dq, *super().gradients(sample, arrays, selected, d_out, d_lse)[1:]


class NoDelta(_WrongGradients):
    """dS lacks the term delta = <d_out, out>."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        mask = self.mask(sample, selected)
        out, _ = oracle.attention(*arrays, mask, sample.factor)
        delta = np.einsum("ihc,ihc->hi", d_out, out)
        return oracle.gradients(*arrays, mask, sample.factor, d_out, d_lse + delta)


class LseGradientIgnored(_WrongGradients):
    """d_lse is ignored."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        return super().gradients(sample, arrays, selected, d_out, np.zeros_like(d_lse))


class LseGradientNegated(_WrongGradients):
    """d_lse has the wrong sign."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        return super().gradients(sample, arrays, selected, d_out, -d_lse)


class UnscaledDk(_WrongGradients):
    """dk lacks the scale."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        dq, dk, dv = super().gradients(sample, arrays, selected, d_out, d_lse)
        return dq, dk / sample.factor, dv


class OneHeadOfAGroup(_WrongGradients):
    """dk and dv hold the last query head of each group, not the sum."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        group = sample.heads // arrays[1].shape[1]
        last = np.arange(sample.heads) % group == group - 1
        q, k, v = arrays
        mask = self.mask(sample, selected) & last[:, None, None]
        dq, _, _ = super().gradients(sample, arrays, selected, d_out, d_lse)
        return dq, *oracle.gradients(q, k, v, mask, sample.factor, d_out, d_lse)[1:]


class ShortGradients(_WrongGradients):
    """Gradients pass through 8 bits, whatever the dtype."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        dq, dk, dv = super().gradients(sample, arrays, selected, d_out, d_lse)
        return shortened(dq, 8), dk, dv


class DvOfRowSums(_WrongGradients):
    """dv is divided by the number of queries."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        dq, dk, dv = super().gradients(sample, arrays, selected, d_out, d_lse)
        return dq, dk, dv / sample.q_tokens


class GradientsOfNaN(_WrongGradients):
    """Gradients hide a NaN behind a 0."""

    def gradients(self, sample: Sample, arrays: Arrays, selected: Routes, d_out: Floats, d_lse: Floats) -> Arrays:
        dq, dk, dv = super().gradients(sample, arrays, selected, d_out, d_lse)
        return np.nan_to_num(dq), np.nan_to_num(dk), np.nan_to_num(dv)
