"""Which CUDA kernels are compiled without a GPU, and what counts as one that cannot run."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sparsemoc.backends.cupy import sources
from sparsemoc.backends.cupy.machine import kernel

needs_nvrtc = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="NVRTC is called through CuPy")


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench is no part of the package: it is imported from the root of the checkout."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return import_module("bench.nvrtc")


@pytest.fixture
def fine(nvrtc: Any) -> Any:
    merge = kernel("merge", "merge", threads=256, blocks_per_sm=2, ELEMENT="half_t", VALUE_BLOCK=64)
    return nvrtc.Row(merge, 89, 1.0, registers=128, shared=99 * 1024)


def test_a_kernel_that_fits_has_no_problem(fine: Any) -> None:
    assert fine.problem is None
    assert fine.line.startswith("merge              sm_89  128 registers    0 B spilled   0 B stack 101376 B shared")
    assert fine.line.endswith("ELEMENT=half_t VALUE_BLOCK=64")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shared": 99 * 1024 + 1}, "101377 bytes of shared memory, more than 101376"),
        ({"registers": 256}, "256 registers, more than 255"),
        # 129 registers are dealt out as 136, to 256 threads of two blocks.
        ({"registers": 129}, "69632 registers of 2 blocks, more than 65536"),
        ({"spills": 4}, "4 bytes of spills, more than 0"),
        ({"stack": 8}, "8 bytes of stack, more than 0"),
        ({"error": "merge.cu(3): error"}, "merge.cu(3): error"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(fine: Any, change: dict[str, object], told: str) -> None:
    row = replace(fine, **change)
    assert row.problem == told
    assert row.line.endswith(f"  CANNOT RUN: {told}")


def test_what_is_known_to_spill_has_a_limit_of_its_own(nvrtc: Any, fine: Any) -> None:
    routed = kernel("routed", "attend_routed", ELEMENT="float", HEAD_BLOCK=256)
    limit = nvrtc.LIMITS["attend_routed", "float", 256]
    row = replace(fine, kernel=routed, stack=limit.stack, spills=limit.spills)
    assert row.problem is None
    assert replace(row, spills=limit.spills + 1).problem == (
        f"{limit.spills + 1} bytes of spills, more than {limit.spills}"
    )


def test_every_kernel_of_every_source_is_compiled_for_every_architecture(nvrtc: Any) -> None:
    written = {name for file in sources.FOLDER.glob("*.cu") for name in sources.signatures(file.stem)}
    assert "attend_routed" in written
    for capability in nvrtc.ARCHITECTURES:
        assert {one.name for one, _ in nvrtc.variants([capability])} == written


def test_every_dtype_width_precision_and_length_of_lists_is_compiled(nvrtc: Any) -> None:
    found = [dict(one.constants) | {"name": one.name} for one, capability in nvrtc.variants([90])]
    pairs = [one for one in found if one["name"] == "attend_anchors"]
    assert {(one["ELEMENT"], one["HEAD_BLOCK"]) for one in pairs} == {
        (element, width) for element in ("half_t", "bfloat_t", "float") for width in (64, 128, 256)
    }
    assert {one["PIECES_OF_FLOAT"] for one in pairs} == {1, 2, 3}
    assert {one["LIST_SLOTS"] for one in found if one["name"] == "route"} == {1 << power for power in range(10)}
    whole = {(one, capability) for one, capability in nvrtc.variants([90], whole=True)}
    assert whole > set(nvrtc.variants([90]))


def test_kernels_of_one_source_and_constants_are_compiled_together_and_once(nvrtc: Any) -> None:
    compilations = nvrtc.compilations(nvrtc.variants([80, 90]))
    keys = [(replace(names[0], name=""), capability) for names, capability in compilations]
    assert len(set(keys)) == len(keys)
    index = [names for names, capability in compilations if names[0].file == "index"]
    assert [len(names) for names in index] == [len(sources.signatures("index"))] * 2
    for names, _ in compilations:
        assert {replace(one, name="") for one in names} == {replace(names[0], name="")}


@needs_nvrtc
def test_the_check_compiles_prints_a_line_for_each_and_says_how_many_cannot_run(
    nvrtc: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nvrtc.main(["--arch", "80", "120", "--kernel", "scan_counts", "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["scan_counts", "sm_80"], ["scan_counts", "sm_120"]]
    assert ": 2 kernels in " in lines[-1]
    assert lines[-1].endswith("0 cannot run")


@needs_nvrtc
def test_a_kernel_that_breaks_a_limit_is_named_and_fails_the_check(
    nvrtc: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "REGISTERS", 8)
    assert nvrtc.main(["--arch", "90", "--kernel", "scan_counts", "--jobs", "1"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("scan_counts of index.cu (")
    assert last.endswith("registers, more than 8")
