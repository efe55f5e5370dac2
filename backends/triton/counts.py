"""What the counts of launches share: the problem with its config, and the time and the needs of a launch."""

from __future__ import annotations

from typing import NamedTuple

from sparsemoc.backends.protocol import Problem
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.launch_backward import blocks
from sparsemoc.backends.triton.resources import Needs, Tile
from sparsemoc.backends.triton.roofline import Launch, seconds


class Part(NamedTuple):
    """One launch: its kernel, for texts, what a block needs, and how long all take."""

    kernel: str
    needs: Needs
    seconds: float


class Job(NamedTuple):
    """A problem with what every count asks for."""

    problem: Problem
    config: TritonConfig
    capability: int

    @property
    def heads(self) -> int:
        """Query heads of all batch rows: of a packed batch there is one."""
        return self.problem.heads * self.problem.batch

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return 4 if self.problem.dtype == "float32" else 2

    @property
    def partial(self) -> int:
        """Bytes of an element of partial results."""
        return 4 if self.config.merge_float32 else self.item

    def tile(self, rows: int, keys: int, warps: int, stages: int) -> Tile:
        """Return the tile of a kernel of pairs."""
        depth, v_depth = blocks(self.problem.head_dim, self.problem.v_head_dim)
        return Tile(rows, keys, warps, stages, depth, v_depth, self.item)

    def timed(self, kernel: str, launch: Launch, needs: Needs, warps: int, stages: int, share: float = 0.7) -> Part:
        """Return a launch with its time."""
        return Part(kernel, needs, seconds(launch, needs, warps, stages, self.capability, share))
