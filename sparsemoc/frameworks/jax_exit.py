"""Programs that are under way while Python ends: a call that finds Python gone would abort the process."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Iterator

import jax

#: Seconds between two calls of one program, after which it is taken to have ended.
QUIET = 0.05


class _Calls:
    lock = threading.Lock()
    running = 0
    ended = 0.0


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Count a call as under way."""
    with _Calls.lock:
        _Calls.running += 1
    try:
        yield
    finally:
        with _Calls.lock:
            _Calls.running -= 1
            _Calls.ended = time.monotonic()


@atexit.register  # later than JAX's own, and so called earlier
def settle() -> None:
    """Wait for the arrays that are still held, and then for programs whose results nobody holds."""
    for array in jax.live_arrays():
        with contextlib.suppress(Exception):  # it is deleted, or its program failed: nobody asks any more
            array.block_until_ready()
    while _Calls.running or time.monotonic() - _Calls.ended < QUIET:
        time.sleep(QUIET / 10)
