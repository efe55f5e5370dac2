"""Files that several processes read and write without locks, and the folder of all our caches."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def _platform_folder() -> str:
    from platformdirs import user_cache_dir

    return user_cache_dir("sparsemoc", appauthor=False)


def cache_folder() -> str:
    """Return the folder of the caches: SPARSEMOC_CACHE_DIR, else the platform's cache folder."""
    folder = os.environ.get("SPARSEMOC_CACHE_DIR")
    if not folder:
        return _platform_folder()
    return os.path.expanduser(folder) if folder.startswith("~") else folder


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a process that dies half way, sees the old content or the new, never a part.

    Raises:
        OSError: its folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, for processes of several machines may share the folder: their process numbers can be equal.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
