"""Compilation of the entry kernels, with a disk cache that follows every file of this folder.

Numba's own cache looks at the one file of the cached function: a kernel would go on running with the old code of what
it calls. Here a change of any file makes all of them stale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.ccallback import CFunc


@cache
def _sources() -> str:
    """Return a hash of the files of this folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _follow_sources(function: Any) -> None:
    function.enable_caching()
    function._cache._cache_file._source_stamp = _sources()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel when first called, without the GIL; keep the machine code on disk."""
    dispatcher = njit(nogil=True)(function)
    _follow_sources(dispatcher)
    return dispatcher


def callback(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile a function that is called by its address; keep the machine code on disk."""
    compiled = CFunc(function, (signature.args, signature.return_type), locals={}, options={})
    _follow_sources(compiled)
    compiled.compile()
    return compiled
