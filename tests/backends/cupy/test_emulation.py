"""The threads of the emulated machine: what they exchange and copy, where they wait, and the rules they must keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sparsemoc.backends.cupy.sources import FOLDER
from tests.backends.cupy.emulated import SHARED, THREADS, Array, Library, library, random

LANES = np.arange(32)
ORDERS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.fixture
def run() -> Iterator[Library]:
    yield library()
    library().reverse(False)


def test_every_intrinsic_is_emulated() -> None:
    declared = r"^DEVICE\s+\w+\s+(\w+)\(([^)]*)\)+ \{"
    macros = r"^#define (\w+)"
    names = {}
    for key, files in {"gpu": ["intrinsics.cuh"], "cpu": [path.name for path in FOLDER.glob("emulation*.hpp")]}.items():
        text = "\n".join((FOLDER / file).read_text() for file in files)
        names[key] = set(re.findall(declared, text, re.M)) | {(name, "") for name in re.findall(macros, text, re.M)}
    assert len(names["gpu"]) > 40
    assert names["gpu"] - names["cpu"] == set()


@ORDERS
def test_threads_know_their_places(run: Library, reverse: bool) -> None:
    run.reverse(reverse)
    seen = np.full((2, 3, 4, 96, 8), -1, np.int32)
    assert run("places", seen, 96, grid=(4, 3, 2), threads=96) is None
    z, y, x, thread = np.indices(seen.shape[:4])
    wanted = [thread, thread % 32, thread // 32, x, y, z, np.full_like(x, 4), np.full_like(x, 3)]
    np.testing.assert_array_equal(seen, np.stack(wanted, axis=-1))


# ---- exchanges, copies, barriers, atomics ----


@ORDERS
def test_lanes_exchange_values(run: Library, reverse: bool) -> None:
    run.reverse(reverse)
    values = random().integers(-9, 9, 32).astype(np.int32)
    sources = random(1).integers(0, 32, 32).astype(np.int32)
    seen = np.empty((8, 32), np.uint32)
    assert run("exchanges", values, sources, 13, 5, seen, threads=32) is None
    ballot = sum(1 << int(lane) for lane in LANES if values[lane] > 0)
    match = [sum(1 << int(other) for other in LANES if values[other] == value) for value in values]
    np.testing.assert_array_equal(seen[0].view(np.int32), values[sources])
    np.testing.assert_array_equal(seen[1].view(np.float32), values[sources])
    np.testing.assert_array_equal(seen[2].view(np.int32), values[LANES ^ 13])
    np.testing.assert_array_equal(seen[3].view(np.float32), values[LANES ^ 13])
    np.testing.assert_array_equal(seen[4].view(np.int32), np.where(LANES >= 5, values[LANES - 5], values))
    np.testing.assert_array_equal(seen[5], ballot)
    np.testing.assert_array_equal(seen[6], match)
    np.testing.assert_array_equal(seen[7], int(values.max() > 5))


def copies(run: Library, valid: int = 1, source_off: int = 0, target_off: int = 0) -> tuple[Array, Array, str | None]:
    """What was copied, what the threads saw at three times, and the failure."""
    memory = np.empty(THREADS * 32 + 48, np.uint8)
    start = -memory.ctypes.data % 16
    source = memory[start : start + THREADS * 32]
    source[:] = random().integers(0, 256, source.size)
    seen = np.zeros((3, THREADS, 2, 4), np.uint32)
    failure = run("copies", source, seen, valid, source_off, target_off)
    return source.view(np.uint32).reshape(THREADS, 2, 4), seen, failure


def test_copies_land_group_by_group_no_sooner_than_they_must(run: Library) -> None:
    source, seen, failure = copies(run)
    assert failure is None
    absent = np.full((THREADS, 4), 0xFFFFFFFF, np.uint32)
    np.testing.assert_array_equal(seen[0, :, 0], absent)
    np.testing.assert_array_equal(seen[0, :, 1], absent)
    np.testing.assert_array_equal(seen[1, :, 0], source[:, 0])
    np.testing.assert_array_equal(seen[1, :, 1], absent)
    np.testing.assert_array_equal(seen[2], source)


def test_in_reverse_copies_land_at_once(run: Library) -> None:
    run.reverse(True)
    source, seen, failure = copies(run)
    assert failure is None
    for when in range(3):
        np.testing.assert_array_equal(seen[when], source)


@ORDERS
def test_an_invalid_copy_writes_zeros(run: Library, reverse: bool) -> None:
    run.reverse(reverse)
    _, seen, failure = copies(run, valid=0)
    assert failure is None
    np.testing.assert_array_equal(seen[2], 0)


def test_copies_are_aligned(run: Library) -> None:
    _, _, failure = copies(run, source_off=4)
    assert re.fullmatch(r"thread 0 of block \(0, 0, 0\): copy_async from 0x\w+, no multiple of 16", str(failure))
    _, _, failure = copies(run, target_off=4)
    assert failure == "thread 0 of block (0, 0, 0): copy_async at byte 4, no multiple of 16"


ALL_BARRIERS = 0b111


@ORDERS
def test_barriers_order_what_threads_write_and_read(run: Library, reverse: bool) -> None:
    run.reverse(reverse)
    x = random().normal(size=(5, THREADS)).astype(np.float32)
    y = np.empty_like(x)
    assert run("rotate", x, y, ALL_BARRIERS, grid=(5, 1, 1)) is None
    np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize("missing", [0b001, 0b010, 0b100])
def test_a_missing_barrier_shows_between_the_orders(run: Library, missing: int) -> None:
    x = random().normal(size=THREADS).astype(np.float32)
    results = []
    for reverse in (False, True):
        run.reverse(reverse)
        y = np.empty_like(x)
        assert run("rotate", x, y, ALL_BARRIERS - missing) is None
        results.append(y)
    assert not np.array_equal(results[0], results[1], equal_nan=True)


@ORDERS
def test_a_block_sums_and_votes(run: Library, reverse: bool) -> None:
    run.reverse(reverse)
    x = random().integers(0, 90, (7, THREADS)).astype(np.int32)
    x[2, 40] = 95
    total, any_seen = np.empty(7, np.int32), np.empty(7, np.int32)
    assert run("sums", x, total, any_seen, grid=(7, 1, 1)) is None
    np.testing.assert_array_equal(total, x.sum(axis=1))
    np.testing.assert_array_equal(any_seen, [0, 0, 1, 0, 0, 0, 0])


@ORDERS
def test_atomics_return_what_was_there(run: Library, reverse: bool) -> None:
    run.reverse(reverse)
    count, total, place = np.array([10], np.int32), np.array([1.5], np.float32), np.zeros(1, np.uint32)
    before = np.empty(3 * THREADS, np.int32)
    assert run("atomics", count, total, place, before, grid=(3, 1, 1)) is None
    np.testing.assert_array_equal(np.sort(before), 10 + 2 * np.arange(3 * THREADS))
    assert (count[0], total[0], place[0]) == (10 + 6 * THREADS, 1.5 + 1.5 * THREADS, THREADS if reverse else 1)


# ---- rules ----

BLOCK = "block (1, 0, 0)"
BROKEN = {
    0: f"warp 0 of {BLOCK}: lanes meet at different intrinsics: thread 0 at shuffle, thread 16 at warp_ballot",
    1: f"{BLOCK}: no thread can go on: threads 0-4 wait at sync_warp, thread 5 has returned, "
    "threads 6-31 wait at sync_warp, threads 32-63 have returned",
    2: f"{BLOCK}: no thread can go on: threads 0-7 wait at sync_block, threads 8-31 wait at warp_any, "
    "threads 32-39 wait at sync_block, threads 40-63 wait at warp_any",
    3: f"{BLOCK}: no thread can go on: threads 0-31 wait at sync_block, threads 32-63 have returned",
    4: f"warp 1 of {BLOCK}: threads of the block meet at different intrinsics: "
    "thread 0 at sync_block, thread 32 at sync_block_any",
    5: f"{BLOCK}: shared memory has 4096 bytes, but about byte 4104 was written",
    6: f"{BLOCK}: shared memory has 4096 bytes, but about byte -100 was written",
    7: f"thread 3 of {BLOCK}: load_matrices at byte 8, no multiple of 16",
    9: f"thread 0 of {BLOCK}: copy_async at byte 4096, outside shared memory",
    10: f"{BLOCK}: no thread can go on: thread 0 has returned, thread 1 waits at warp_index, thread 2 has returned, ",
}


def well(run: Library) -> None:
    """The library still works, and begins with fresh shared memory."""
    out = np.zeros(THREADS, np.uint32)
    for _ in range(2):
        assert run("astray", -1, out, grid=(2, 1, 1)) is None
        np.testing.assert_array_equal(out, 0xFFFFFFFF)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_rule_ends_the_call_with_a_text(run: Library, how: int) -> None:
    well(run)
    failure = run("astray", how, np.zeros(THREADS, np.uint32), grid=(2, 1, 1))
    assert failure is not None
    assert failure.startswith(BROKEN[how]), failure
    well(run)


def test_matrices_lie_in_shared_memory(run: Library) -> None:
    failure = run("astray", 8, np.zeros(THREADS, np.uint32), grid=(2, 1, 1))
    wanted = rf"thread 3 of {re.escape(BLOCK)}: load_matrices at byte -?\d+, outside shared memory"
    assert re.fullmatch(wanted, str(failure))


def test_a_stack_has_an_end(run: Library) -> None:
    out = np.zeros(THREADS, np.uint32)
    assert run("deep", out) == "thread 0 of block (0, 0, 0): more than 124224 bytes of stack"
    well(run)


@pytest.mark.parametrize("threads", [0, 31, 48, 2048])
def test_blocks_are_of_whole_warps(run: Library, threads: int) -> None:
    failure = run("astray", -1, np.zeros(THREADS, np.uint32), threads=threads)
    assert failure == f"blocks of {threads} threads and {SHARED} bytes of shared memory"


def test_blocks_grow_and_shrink(run: Library) -> None:
    for threads in (32, 1024, 96, 32):
        seen = np.full((2, threads, 8), -1, np.int32)
        assert run("places", seen, threads, grid=(2, 1, 1), threads=threads) is None
        np.testing.assert_array_equal(seen[1, :, 0], np.arange(threads))


def test_two_host_threads_call_at_once(run: Library) -> None:
    x = random().normal(size=(40, THREADS)).astype(np.float32)

    def work(index: int) -> tuple[bool, str | None]:
        y = np.empty_like(x)
        good = run("rotate", x * index, y, ALL_BARRIERS, grid=(40, 1, 1)) is None and np.array_equal(y, 2 * x * index)
        return good, run("astray", index % 2, np.zeros(THREADS, np.uint32), grid=(2, 1, 1))

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, range(100)))
    assert results == [(True, BROKEN[index % 2]) for index in range(100)]
