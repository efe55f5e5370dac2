"""The CUDA sources: which files a kernel is made of, and the parameters that its signature names."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sparsemoc.backends.cupy.errors import KernelError

#: Where the .cu files are, and the headers that any of them may include.
FOLDER = Path(__file__).parent / "cuda"

#: What a kernel can be given beside pointers, by the names of intrinsics.cuh.
SCALARS = ("int", "u32", "u64", "i64", "float")

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_KERNEL = re.compile(r"\bKERNEL\s*\(\s*(\w+)\s*\)\s*\(([^()]*)\)")
_PARAMETER = re.compile(r"(?P<type>(?:const\s+)?\w+\s*\*|\w+)\s*\b(?P<name>[a-z_A-Z]\w*)")


class Parameter(NamedTuple):
    """One parameter of a kernel.

    Attributes:
        type: as written, "const ELEMENT*", "int".
        name: by which the host passes it.
        kind: the C type that the host converts to, "pointer" or one of `SCALARS`.
    """

    type: str
    name: str
    kind: str


def place_of(file: str) -> Path:
    """Return where a source is: "routed" is cuda/routed.cu; an absolute path names a file anywhere, without ".cu"."""
    return FOLDER / f"{file}.cu"


@cache
def closure(file: str) -> dict[str, str]:
    """Return the texts that a source is made of: by the name that includes it, each header; the source itself first.

    Raises:
        KernelError: a file does not exist.
    """
    place = place_of(file)
    found = {place.name: _read(place, f"the kernels of {file}")}
    waiting = [place]
    while waiting:
        current = waiting.pop()
        for name in _INCLUDE.findall(_COMMENT.sub("", found[current.name])):
            if name in found:
                continue
            header = current.parent / name if (current.parent / name).exists() else FOLDER / name
            found[name] = _read(header, f"{name}, included by {current.name},")
            waiting.append(header)
    return found


@cache
def digest(file: str) -> str:
    """Return the SHA-256 of a source and all that it includes."""
    found = hashlib.sha256()
    for name, text in sorted(closure(file).items()):
        found.update(f"{name}\0{len(text)}\0{text}".encode())
    return found.hexdigest()


@cache
def signatures(file: str) -> dict[str, tuple[Parameter, ...]]:
    """Return the parameters of each kernel of a source, by the kernel's name, in order.

    Raises:
        KernelError: a parameter is of another type than kernels take, or named twice.
    """
    place = place_of(file)
    text = _COMMENT.sub(" ", closure(file)[place.name])
    return {name: _parameters(f"{place.name}: {name}", inside) for name, inside in _KERNEL.findall(text)}


def signature(file: str, name: str) -> tuple[Parameter, ...]:
    """Return the parameters of one kernel, in order.

    Raises:
        KernelError: there is no such kernel, or its signature is malformed.
    """
    found = signatures(file)
    if name not in found:
        raise KernelError(f"{place_of(file).name} has no KERNEL({name}), only {', '.join(found) or 'none at all'}.")
    return found[name]


def _parameters(kernel: str, text: str) -> tuple[Parameter, ...]:
    parameters = tuple(_parameter(kernel, one) for one in text.split(",")) if text.strip() else ()
    names = [parameter.name for parameter in parameters]
    for name in names:
        if names.count(name) > 1:
            raise KernelError(f"{kernel} names the parameter {name} twice: the host passes arguments by name.")
    return parameters


def _parameter(kernel: str, text: str) -> Parameter:
    match = _PARAMETER.fullmatch(text.strip())
    if match is not None:
        written = re.sub(r"\s+", " ", match["type"]).replace(" *", "*")
        kind = "pointer" if written.endswith("*") else written
        if kind in ("pointer", *SCALARS):
            return Parameter(written, match["name"], kind)
    raise KernelError(
        f"{kernel} has the parameter `{' '.join(text.split())}`, which is none of `const T* name`, `T* name` and "
        f"`name` of type {', '.join(SCALARS)}."
    )


def _read(place: Path, what: str) -> str:
    try:
        return place.read_text(encoding="utf-8")
    except OSError as error:
        raise KernelError(f"{what} cannot be read from {place}: {error.strerror}.") from error
