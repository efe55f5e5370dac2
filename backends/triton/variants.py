"""What a kernel is compiled for: the data by which CI compiles every kernel without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One way to compile a kernel.

    Attributes:
        name: for reports.
        kernel: the `@triton.jit` function.
        signature: type of each argument, "constexpr" for compile-time ones.
        constants: value of each compile-time argument.
        warps, stages: launch options.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int
