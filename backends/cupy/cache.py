"""Compiled kernels on disk: content-addressed, read and written by any number of processes without locks.

<folder>/<key>-<digest of the content>.<suffix>: a file whose content is not what its name says is compiled anew.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from sparsemoc.backends.files import cache_folder, write_whole

#: Hexadecimal digits of the digests in names.
_DIGITS = 32


def folder() -> Path:
    """Return where kernels are kept: SPARSEMOC_KERNEL_CACHE_DIR, else `kernels` in the folder of all caches."""
    own = os.environ.get("SPARSEMOC_KERNEL_CACHE_DIR")
    # Absolute: a library without a folder in its name would be looked for elsewhere.
    return (Path(own).expanduser() if own else Path(cache_folder()) / "kernels").absolute()


def key_of(*parts: str) -> str:
    """Return the key of what is compiled from these texts: sources, macros, flags, version of the compiler."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part)}\0{part}".encode())
    return found.hexdigest()[:_DIGITS]


def kept(key: str, suffixes: Sequence[str], build: Callable[[], Sequence[bytes]]) -> list[Path]:
    """Return the files of a key, one to a suffix; `build` gives their contents where one is absent or damaged.

    Where the folder cannot be written they lie in a folder of this process alone, and go with it.
    """
    home = folder()
    found = [_whole(home, key, suffix) for suffix in suffixes]
    present = [path for path in found if path is not None]
    if len(present) == len(suffixes):
        return present
    contents = build()
    try:
        return _written(home, key, suffixes, contents)
    except OSError:
        return _written(_private_folder(), key, suffixes, contents)


def unwritable() -> str | None:
    """Return why nothing can be kept from process to process, or None."""
    probe = folder() / f".probe.{os.getpid()}"
    try:
        write_whole(probe, b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        return f"{folder()} cannot be written: {error.strerror}"
    return None


def _whole(home: Path, key: str, suffix: str) -> Path | None:
    """Return the file of a key if there is one that is whole; the damaged are removed."""
    for path in sorted(home.glob(f"{key}-*.{suffix}")):
        with suppress(OSError):
            if path.name == _name(key, suffix, path.read_bytes()):
                return path
            path.unlink()
    return None


def _written(home: Path, key: str, suffixes: Sequence[str], contents: Sequence[bytes]) -> list[Path]:
    paths = [home / _name(key, suffix, content) for suffix, content in zip(suffixes, contents, strict=True)]
    for path, content in zip(paths, contents, strict=True):
        write_whole(path, content)
    return paths


def _name(key: str, suffix: str, content: bytes) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()[:_DIGITS]}.{suffix}"


@cache
def _private_folder() -> Path:
    made = tempfile.mkdtemp(prefix="sparsemoc-kernels-")  # readable by this user alone: code is loaded from it
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)
