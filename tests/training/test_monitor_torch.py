"""The monitor on tensors: the numbers of NumPy's path, and no tensor is read before the summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import sparsemoc as moc
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.strategies import partial_anchors, problems
from sparsemoc.training import LayerSummary, Monitor
from sparsemoc.training.array_ops import TorchOps

torch = pytest.importorskip("torch", reason="tensors are torch's")


def layout_of(problem: Problem) -> moc.Layout:
    arrays = problem.arrays
    options = {name: value for name, value in problem.options().items() if name not in ("scale", "axes")}
    return moc.route(arrays.q, arrays.k, problem.spec, **options, backend="reference")


def on(device: str, layout: moc.Layout) -> moc.Layout:
    lengths = None if layout.key_lengths is None else torch.from_numpy(layout.key_lengths).to(device)
    return moc.Layout(torch.from_numpy(layout.selected).to(device), layout.plan, lengths)


def recorded(*layouts: moc.Layout) -> LayerSummary:
    monitor = Monitor()
    for layout in layouts:
        monitor.record("layer", layout)
    return monitor.summary()["layer"]


def expect_same(got: LayerSummary, wanted: LayerSummary) -> None:
    for one, other in zip(got.plans, wanted.plans, strict=True):
        for name in ("pairs", "full", "samples", "chunk_load", "reachable", "hits", "queries"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(problem=problems(pairs=2**11))
@settings(max_examples=80)
def test_tensors_on_the_cpu_count_as_arrays(problem: Problem) -> None:
    layout = layout_of(problem)
    expect_same(recorded(on("cpu", layout)), recorded(layout))


def device_path(layout: moc.Layout) -> LayerSummary:
    """Record twice by the operations that serve a GPU, and by no others, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsemoc.training.monitor.ops_of", lambda array: TorchOps(array.device, most_entries=64))
        return recorded(on("cpu", layout), on("cpu", layout))


@given(problem=problems(pairs=2**11))
@settings(max_examples=80)
def test_the_operations_of_a_gpu_give_the_same_numbers(problem: Problem) -> None:
    layout = layout_of(problem)
    expect_same(device_path(layout), recorded(layout, layout))


@given(problem=problems(pairs=2**11, packed=False, anchor=partial_anchors()))
@settings(max_examples=80)
def test_so_they_do_where_anchors_hold_parts_of_chunks(problem: Problem) -> None:
    layout = layout_of(problem)
    expect_same(device_path(layout), recorded(layout, layout))


# Padded, with a token window: everything that may be counted is.
STREAM = moc.Stream.multishot(shots=3, frames=2, height=4, width=5, caption=3, prompt=2)
SPEC = moc.RoutingSpec(chunks=moc.Chunks(7), top_k=2, anchors=("text", "frame", moc.window(4)))
PADDED = Problem(SPEC, (STREAM,), batch=2, heads=2, head_dim=4, key_lengths=((2, 3, 40, 2, 30, 1, 7),) * 2)


def test_recording_reads_no_data() -> None:
    layout = on("meta", layout_of(PADDED))  # tensors without data: whatever reads them raises
    monitor = Monitor()
    for _ in range(2):
        monitor.record("layer", layout)
    with pytest.raises(NotImplementedError, match="meta"):
        monitor.summary()


def test_records_within_and_outside_of_inference_mode_add_up() -> None:
    layout = layout_of(PADDED)
    monitor = Monitor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsemoc.training.monitor.ops_of", lambda array: TorchOps(array.device))
        with torch.inference_mode():
            monitor.record("layer", on("cpu", layout))
        monitor.record("layer", on("cpu", layout))
    expect_same(monitor.summary()["layer"], recorded(layout, layout))


def test_lengths_may_change_after_they_were_recorded() -> None:
    layout = layout_of(PADDED)
    lengths: Any = torch.from_numpy(layout.key_lengths.copy())
    monitor = Monitor()
    monitor.record("layer", moc.Layout(torch.from_numpy(layout.selected), layout.plan, lengths))
    lengths.zero_()
    expect_same(monitor.summary()["layer"], recorded(layout))
