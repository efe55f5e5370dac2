"""The user's cache of tuned results."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from sparsemoc.tuning.key import Environment, Key
from sparsemoc.tuning.outcome import Outcome


@cache
def _platform_folder() -> str:
    from platformdirs import user_cache_dir

    return user_cache_dir("sparsemoc", appauthor=False)


def cache_folder() -> str:
    """Return the folder of the cache: SPARSEMOC_CACHE_DIR, else the platform's cache folder."""
    return os.environ.get("SPARSEMOC_CACHE_DIR") or _platform_folder()


class Store:
    """Results on disk."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(cache_folder() if root is None else root)

    def load(self, environment: Environment, key: Key) -> Outcome | None:
        """Return a result."""
        return None

    def save(self, environment: Environment, key: Key, outcome: Outcome) -> str | None:
        """Keep a result."""
        return None
