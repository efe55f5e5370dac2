"""What kernels report: raised by the next call, once, with the call that met it; never waited for unless asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Problem
from sparsemoc.backends import cupy as backend
from sparsemoc.backends.cupy import faults
from sparsemoc.backends.cupy.cuda import CudaMachine
from sparsemoc.backends.cupy.emulator import EmulatedMachine
from sparsemoc.backends.cupy.faults import CODES, watched
from sparsemoc.backends.cupy.machine import Machine, kernel, source_number
from sparsemoc.backends.cupy.sources import FOLDER
from sparsemoc.spec.errors import LayoutError, UnsupportedError
from sparsemoc.spec.host import host
from tests.backends.cupy.fake_cupy import installed

PICK = kernel(str(Path(__file__).with_name("faulty")), "pick", threads=32)
X = np.arange(8, dtype=np.float32)
VALID = np.arange(-1, 31, dtype=np.int32) % 8


@pytest.fixture(autouse=True)
def no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_WATCHES", {})


@pytest.fixture
def cupy() -> Iterator[Any]:
    with installed() as module:
        yield module


@pytest.fixture(params=["numpy", "torch", "cupy"])
def machine(request: pytest.FixtureRequest) -> Machine:
    if request.param == "cupy":
        request.getfixturevalue("cupy")
        return CudaMachine("cupy", 0)
    if request.param == "torch":
        pytest.importorskip("torch", reason="tensors are torch's")
    return EmulatedMachine(request.param)


def problem(*, checked: bool = False) -> Problem:
    return Problem(
        plan=moc.plan(moc.RoutingSpec(), tokens=8),
        framework="cupy",
        device="cuda",
        dtype="float32",
        batch=1,
        heads=2,
        kv_heads=1,
        head_dim=64,
        v_head_dim=64,
        options=moc.Options(checked=checked),
    )


def pick(machine: Machine, selected: Any, *, name: str = "attend", checked: bool = False, blocks: int = 1) -> Any:
    y = machine.zeros((32 * blocks,), "float32")
    with watched(machine, name, problem(checked=checked)) as fault:
        machine.launch(
            PICK, (blocks, 1, 1), x=machine.upload(X), selected=machine.upload(selected), y=y, n=8, fault=fault
        )
    return host(y)


def with_entry(row: int, value: int, rows: int = 32) -> Any:
    selected = np.resize(VALID, rows)
    selected[row] = value
    return selected


def test_a_fault_is_raised_by_the_next_call_and_once(machine: Machine) -> None:
    y = pick(machine, with_entry(17, 8))
    np.testing.assert_array_equal(y, np.where(np.arange(32) == 17, 0, X[VALID]))
    with pytest.raises(LayoutError) as raised:
        pick(machine, VALID, name="pool")
    assert re.fullmatch(
        r"attend on float32 on cuda \(cupy\), heads 2/1, head_dim 64/64: layout\.selected must hold chunks of the plan "
        r"or -1, got chunk 8 in row 17 \(found by a kernel\)\. It was taken as -1\. Hint: Layout\.validate\(\) .*",
        str(raised.value),
    )
    np.testing.assert_array_equal(pick(machine, VALID), X[VALID])
    backend.synchronize()


def test_the_first_of_many_faults_is_kept(machine: Machine) -> None:
    selected = np.where(np.arange(128) > 3, 100, with_entry(3, -2, 128)).astype(np.int32)
    with pytest.raises(LayoutError, match="got chunk -2 in row 3 "):
        pick(machine, selected, checked=True, blocks=4)
    with pytest.raises(LayoutError, match=f"got chunk {2**31 - 1} in row 127 "):
        pick(machine, with_entry(127, 2**31 - 1, 128), checked=True, blocks=4)


def test_a_checked_call_raises_its_own_fault(machine: Machine) -> None:
    np.testing.assert_array_equal(pick(machine, VALID, checked=True), X[VALID])
    with pytest.raises(LayoutError, match=r"attend_backward on .*got chunk 9 in row 0 "):
        pick(machine, with_entry(0, 9), name="attend_backward", checked=True)
    pick(machine, VALID)


def test_synchronize_raises_what_no_later_call_has(machine: Machine) -> None:
    backend.synchronize()
    pick(machine, with_entry(5, 10))
    with pytest.raises(LayoutError, match=r"attend on .*got chunk 10 in row 5 "):
        backend.synchronize()
    backend.synchronize()


def test_a_call_that_fails_by_itself_reports_its_own_error(machine: Machine) -> None:
    with pytest.raises(ZeroDivisionError), watched(machine, "attend", problem()):
        _ = 1 // 0
    pick(machine, VALID)


def test_no_call_waits_for_an_earlier_one(cupy: Any) -> None:
    machine = CudaMachine("cupy", 0)
    cupy.busy = True
    for row in range(3):
        pick(machine, with_entry(row, 8), name=f"call{row}")
    cupy.busy = False
    with pytest.raises(LayoutError, match=r"^call0 on .*in row 0 "):
        pick(machine, VALID)
    pick(machine, VALID)  # the copies of the later calls held the first one's fault, and went with it
    backend.synchronize()


def test_a_checked_call_waits_for_its_copy(cupy: Any) -> None:
    cupy.busy = True
    with pytest.raises(LayoutError, match=r"^attend on .*in row 1 "):
        pick(CudaMachine("cupy", 0), with_entry(1, 8), checked=True)


def test_every_device_has_its_own_word(cupy: Any) -> None:
    pick(CudaMachine("cupy", 0), with_entry(1, 8))
    pick(CudaMachine("cupy", 1), VALID)
    pick(CudaMachine("cupy", 1), VALID)
    with pytest.raises(LayoutError, match="in row 1 "):
        pick(CudaMachine("cupy", 0), VALID)


def test_nothing_is_copied_or_looked_at_while_a_graph_is_captured(cupy: Any) -> None:
    machine = CudaMachine("cupy", 0)
    y, x, selected = machine.zeros((32,), "float32"), machine.upload(X), machine.upload(with_entry(4, 8))
    with cupy.cuda.Stream(5) as stream:
        stream.capturing = True
        with (
            pytest.raises(UnsupportedError, match="attend: the first call on a device cannot be captured"),
            watched(machine, "attend", problem()),
        ):
            pass
        stream.capturing = False
        pick(machine, with_entry(2, 8))
        stream.capturing = True
        with watched(machine, "attend", problem(checked=True)) as fault:  # an event would refuse to be recorded here
            machine.launch(PICK, (1, 1, 1), x=x, selected=selected, y=y, n=8, fault=fault)
        stream.capturing = False
    with pytest.raises(LayoutError, match="in row 2 "):
        faults.poll(machine)
    # A replay leaves its fault behind without a call of its own.
    machine.launch(PICK, (1, 1, 1), x=x, selected=selected, y=y, n=8, fault=fault)
    with pytest.raises(LayoutError, match=r"^an earlier call: .*in row 4 "):
        backend.synchronize()


def test_a_fault_names_the_source_that_found_it() -> None:
    source = min(path.stem for path in FOLDER.glob("*.cu"))
    number = np.array([source_number(source)], np.uint32).view(np.int32)[0]
    machine = EmulatedMachine("numpy")
    with watched(machine, "attend", problem()) as fault:
        fault[:] = [1, number, 3, 4]
    with pytest.raises(LayoutError, match=rf"got chunk 3 in row 4 \(found by {source}\.cu\)"):
        faults.poll(machine)


def test_a_kernel_without_a_word_reports_nothing() -> None:
    y = np.zeros(32, np.float32)
    EmulatedMachine("numpy").launch(PICK, (1, 1, 1), x=X, selected=with_entry(4, 8), y=y, n=8, fault=None)
    np.testing.assert_array_equal(y, np.where(np.arange(32) == 4, 0, X[VALID]))


def test_host_and_device_know_the_same_codes() -> None:
    text = (FOLDER / "faults.cuh").read_text()
    found = {int(number): name for name, number in re.findall(r"\b(FAULT_\w+) = (\d+),", text)}
    assert found.pop(0) == "FAULT_NONE"
    assert found == {number: name for number, (name, _) in CODES.items()}
