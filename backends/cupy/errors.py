"""The error of kernels themselves: what a user's arrays cannot cause."""

from __future__ import annotations


class KernelError(RuntimeError):
    """A kernel could not be read, compiled or launched; the text says which, with what, and why."""
