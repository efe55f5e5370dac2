"""CUDA sources: what a kernel is made of, what its signature names, and what is refused with a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsemoc.backends.cupy import sources
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.sources import FOLDER, Parameter

TINY = str(Path(__file__).with_name("tiny"))
SOURCES = sorted(path.stem for path in FOLDER.glob("*.cu"))


def written(folder: Path, text: str, **headers: str) -> str:
    for name, inside in headers.items():
        (folder / f"{name}.cuh").write_text(inside)
    (folder / "own.cu").write_text(text)
    return str(folder / "own")


def test_a_signature_has_types_and_names_in_order() -> None:
    assert sources.signature(TINY, "echo") == (
        Parameter("u64*", "words", "pointer"),
        Parameter("int", "a", "int"),
        Parameter("u32", "b", "u32"),
        Parameter("u64", "c", "u64"),
        Parameter("i64", "d", "i64"),
        Parameter("float", "e", "float"),
        Parameter("const float*", "nothing", "pointer"),
    )
    kinds = [parameter.kind for parameter in sources.signature(TINY, "scale")]
    assert kinds == ["pointer", "pointer", "int", "i64", "float"]


def test_comments_declare_no_kernels() -> None:
    assert list(sources.signatures(TINY)) == ["scale", "echo", "block_sums"]


@pytest.mark.parametrize("file", SOURCES)
def test_every_signature_of_the_package_can_be_passed_to(file: str) -> None:
    found = sources.signatures(file)
    assert found
    assert len(found) == sources.closure(file)[f"{file}.cu"].count("\nKERNEL(")


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ("int", "the parameter `int`"),
        ("const int n", "the parameter `const int n`"),
        ("double x", "none of `const T* name`, `T* name` and `name` of type int, u32, u64, i64, float"),
        ("ELEMENT x", "the parameter `ELEMENT x`"),
        ("float** x", r"the parameter `float\*\* x`"),
        ("float& x", "the parameter `float& x`"),
        ("int n = 3", "the parameter `int n = 3`"),
        ("int a,", "the parameter ``"),
        ("int a, float* a", "names the parameter a twice"),
    ],
)
def test_a_malformed_signature_is_refused(tmp_path: Path, parameters: str, text: str) -> None:
    file = written(tmp_path, f"KERNEL(own)({parameters}) {{}}")
    with pytest.raises(KernelError, match=rf"own\.cu: own (has|names) .*|{text}") as raised:
        sources.signature(file, "own")
    assert text.replace("\\", "") in str(raised.value)


def test_an_unknown_kernel_and_an_absent_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"tiny\.cu has no KERNEL\(scal\), only scale, echo, block_sums\."):
        sources.signature(TINY, "scal")
    with pytest.raises(KernelError, match=r"the kernels of absent cannot be read from .*absent\.cu: No such file"):
        sources.signature("absent", "own")
    file = written(tmp_path, '#include "gone.cuh"\nKERNEL(own)() {}')
    with pytest.raises(KernelError, match=r"gone\.cuh, included by own\.cu, cannot be read"):
        sources.digest(file)


def test_the_closure_follows_includes_and_the_digest_every_byte(tmp_path: Path) -> None:
    texts = {
        "text": '#include "first.cuh"\n// #include "absent.cuh"\nKERNEL(own)() {}',
        "first": '#include "second.cuh"\n#include "machine.cuh"',
        "second": '#pragma once\n#include "first.cuh"\n#include <no_file_of_ours>',
    }
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder in folders:
        folder.mkdir()
    one, same = (written(folder, **texts) for folder in folders[:2])
    other = written(folders[2], **{**texts, "second": texts["second"] + " "})
    closure = sources.closure(one)
    assert next(iter(closure)) == "own.cu"
    assert {"own.cu", "first.cuh", "second.cuh", "machine.cuh", "intrinsics.cuh"} <= set(closure)
    assert closure["machine.cuh"] == (FOLDER / "machine.cuh").read_text()
    assert sources.digest(one) == sources.digest(same) != sources.digest(other)
