"""Compiled kernels on disk: found again, compiled anew when damaged or made of something else, never half written."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsemoc.backends.cupy import cache, host_compiler
from sparsemoc.backends.cupy.emulator import EmulatedMachine
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.machine import Kernel, kernel

TINY = str(Path(__file__).with_name("tiny"))
KEY = cache.key_of("sources", "flags")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPARSEMOC_KERNEL_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


class Builder:
    """Counts how often it is asked."""

    def __init__(self, *contents: bytes) -> None:
        self.contents, self.calls = contents, 0

    def __call__(self) -> tuple[bytes, ...]:
        self.calls += 1
        return self.contents


def test_the_folder_is_the_kernels_own_or_beside_the_tuned_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "/of/all")
    monkeypatch.setenv("SPARSEMOC_KERNEL_CACHE_DIR", "~/own")
    assert cache.folder() == Path.home() / "own"
    monkeypatch.delenv("SPARSEMOC_KERNEL_CACHE_DIR")
    assert cache.folder() == Path("/of/all/kernels")
    monkeypatch.setenv("SPARSEMOC_KERNEL_CACHE_DIR", "here")
    assert cache.folder() == Path.cwd() / "here"
    monkeypatch.setenv("SPARSEMOC_KERNEL_CACHE_DIR", "")
    monkeypatch.setenv("SPARSEMOC_CACHE_DIR", "")
    assert cache.folder().parts[-2:] == ("sparsemoc", "kernels")


def test_keys_depend_on_every_part_and_where_it_ends() -> None:
    assert len({cache.key_of(*parts) for parts in (("a", "b"), ("ab",), ("ab", ""), ("b", "a"))}) == 4


def test_what_is_kept_is_found_and_built_once(home: Path) -> None:
    build = Builder(b"code", b"log")
    paths = cache.kept(KEY, ("cubin", "log"), build)
    assert [path.read_bytes() for path in paths] == [b"code", b"log"]
    assert cache.kept(KEY, ("cubin", "log"), build) == paths
    assert build.calls == 1
    assert sorted(home.iterdir()) == sorted(paths)


@pytest.mark.parametrize("damage", [b"", b"cod", b"coda", b"code and more"])
def test_a_damaged_file_is_built_anew(damage: bytes) -> None:
    build = Builder(b"code", b"log")
    code, _ = cache.kept(KEY, ("cubin", "log"), build)
    code.write_bytes(damage)
    assert cache.kept(KEY, ("cubin", "log"), build)[0].read_bytes() == b"code"
    assert build.calls == 2


def test_a_file_that_is_gone_is_built_anew() -> None:
    build = Builder(b"code", b"log")
    cache.kept(KEY, ("cubin", "log"), build)[1].unlink()
    assert [path.read_bytes() for path in cache.kept(KEY, ("cubin", "log"), build)] == [b"code", b"log"]


def test_a_build_that_fails_leaves_nothing(home: Path) -> None:
    def build() -> list[bytes]:
        raise ValueError("does not compile")

    with pytest.raises(ValueError, match="does not compile"):
        cache.kept(KEY, ["so"], build)
    assert not list(home.glob("*"))


def test_a_folder_that_cannot_be_written_is_replaced_by_one_of_this_process(home: Path) -> None:
    home.write_text("a file where the folder would be")
    assert "cannot be written: " in str(cache.unwritable())
    (path,) = cache.kept(KEY, ["so"], Builder(b"code"))
    assert path.read_bytes() == b"code"
    assert path.parent.stat().st_mode & 0o077 == 0  # code of another user must not get in
    home.unlink()
    assert cache.unwritable() is None


def test_threads_that_build_at_once_all_get_whole_files(home: Path) -> None:
    content = np.random.default_rng(0).bytes(1 << 20)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.kept(KEY, ["so"], Builder(content))[0].read_bytes(), range(16)))
    assert set(found) == {content}
    assert len(list(home.iterdir())) == 1


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Return the commands of the compiler that are run from now on; nothing that is loaded already serves."""
    commands: list[tuple[str, ...]] = []
    compile_ = host_compiler._compile

    def counted(kernel: Kernel, command: tuple[str, ...]) -> bytes:
        commands.append(command)
        return compile_(kernel, command)

    monkeypatch.setattr(host_compiler, "_compile", counted)
    host_compiler._runner.cache_clear()
    host_compiler._library.cache_clear()
    return commands


def sums(kernel: Kernel, threads: int = 64) -> int:
    out = np.zeros(1, np.int32)
    EmulatedMachine("numpy").launch(kernel, (1, 1, 1), x=np.ones(threads, np.int32), out=out)
    return int(out[0])


def test_kernels_of_one_source_and_macros_share_a_compilation(compiled: list[tuple[str, ...]], home: Path) -> None:
    on_floats: dict[str, Any] = {"ELEMENT": "float", "SCALE": 1}
    assert sums(kernel(TINY, "block_sums", threads=64, shared=256, **on_floats)) == 64
    words = np.zeros(5, np.uint64)
    EmulatedMachine("numpy").launch(
        kernel(TINY, "echo", threads=64, shared=256, blocks_per_sm=2, **on_floats),
        (1, 1, 1), words=words, a=1, b=2, c=3, d=4, e=0.0, nothing=None,
    )  # fmt: skip
    assert words.tolist() == [1, 2, 3, 4, 0]
    assert len(compiled) == 1
    assert sums(kernel(TINY, "block_sums", threads=32, shared=256, **on_floats), 32) == 32
    assert len(compiled) == 2
    assert len(list(home.glob("*.so"))) == 2


def test_a_library_that_cannot_be_loaded_is_told_with_a_hint(
    compiled: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_compiler, "_compile", lambda kernel, command: b"no library")
    with pytest.raises(
        KernelError, match=r"tiny\.cu, compiled for the CPU, cannot be loaded: .* Hint: set SPARSEMOC_K"
    ):
        sums(kernel(TINY, "block_sums", threads=64, shared=256, ELEMENT="float", SCALE=1))


def test_another_process_finds_what_this_one_compiled(compiled: list[tuple[str, ...]], home: Path) -> None:
    made = kernel(TINY, "block_sums", threads=64, shared=256, ELEMENT="float", SCALE=1)
    assert sums(made) == 64
    (path,) = home.iterdir()
    stamp = path.stat().st_mtime_ns
    script = (
        "import numpy as np\n"
        "from sparsemoc.backends.cupy import host_compiler\n"
        "from sparsemoc.backends.cupy.machine import kernel, machine_of\n"
        "host_compiler._compile = None\n"
        f"made = kernel({TINY!r}, 'block_sums', threads=64, shared=256, ELEMENT='float', SCALE=1)\n"
        "out = np.zeros(1, np.int32)\n"
        "machine_of(out).launch(made, (1, 1, 1), x=np.full(64, 2, np.int32), out=out)\n"
        "print(out[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "128\n"
    assert (len(compiled), path.stat().st_mtime_ns) == (1, stamp)
