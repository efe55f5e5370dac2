"""What a user of the example can put right."""

from __future__ import annotations

from sparsemoc.spec.errors import SparsemocError


class CheckpointError(SparsemocError, ValueError):
    """A checkpoint is damaged, missing, in the way, or of another run."""


class OptionError(SparsemocError, ValueError):
    """An option that does not fit the machine or the others."""
