"""JSON files that several processes read without locks; `backends.files.write_whole` writes them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

#: No file of ours comes near it; what is larger was put there by something else.
MOST_BYTES = 64 << 20


def read_json(path: Path) -> Any:
    """Return what a file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or no JSON; the text says which.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):  # to open a pipe would wait for its writer
        raise ValueError("is not a regular file")
    if state.st_size > MOST_BYTES:
        raise ValueError(f"holds {state.st_size} bytes, more than {MOST_BYTES}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("is JSON nested too deep") from None
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}" if state.st_size else "is empty") from None


def reason_of(error: Exception) -> str:
    """Return why a file could not be read or written, without its name."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
