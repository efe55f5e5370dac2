"""What a backend is, and what it is told of a problem before any array is touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.checks import whole, word
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import seed_key
from sparsemoc.spec.plan import Plan

#: Arrays of `Problem.framework`, on one device.
Array = Any

#: What a backend executes: the names of its methods. Each has tunables of its own.
Operation = Literal["pool", "route", "attend", "attend_backward"]
OPERATIONS: tuple[Operation, ...] = ("pool", "route", "attend", "attend_backward")


class Result(NamedTuple):
    """What attention gives.

    Attributes:
        out: as q, with v's head_dim; 0 where a query sees no key.
        lse: (batch, heads, tokens), packed (heads, tokens); natural log of the sum of exponentials, -inf where a query
            sees no key; float32, float64 for float64 input.
    """

    out: Array
    lse: Array


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute, where a choice does not change what is computed.

    Args:
        precision: "ieee" (true float32 products) or "tf32" (where a backend offers it).
        max_workspace: most bytes of temporary memory, None for no limit.
        anchors: engine of the anchored pairs: "auto", "own", or a provider's name.
        checked: read the data and raise on a layout that breaks a rule; may synchronise.
    """

    precision: str = "ieee"
    max_workspace: int | None = None
    anchors: str = "auto"
    checked: bool = False

    def __post_init__(self) -> None:
        word(self.precision, "Options: precision", ("ieee", "tf32"))
        if self.max_workspace is not None:
            whole(self.max_workspace, "Options: max_workspace", least=1, hint="It is in bytes.")
        if not isinstance(self.anchors, str) or not self.anchors:
            raise SpecError(
                f'Options: anchors must be "auto", "own" or a provider\'s name, got {describe(self.anchors)}.'
            )
        if not isinstance(self.checked, bool):
            raise SpecError(f"Options: checked must be True or False, got {describe(self.checked)}.")


@dataclass(frozen=True)
class Randomness:
    """The counters of route dropout.

    Attributes:
        seed: an int in [0, 2**64), or a 0-d int64 array of the caller's library on the device of the arrays.
        batch_start, head_start: the global numbers of the first batch row and head.
    """

    seed: Any
    batch_start: int = 0
    head_start: int = 0

    @property
    def key(self) -> tuple[int, int]:
        """The low and high word of the seed, for kernels on the host: a seed on a device is read, which waits."""
        return seed_key(self.seed)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A call as a backend is asked about it: lengths, dtypes and wishes, no data.

    Attributes:
        plan: the compiled spec.
        framework: library of the arrays, "numpy", "cupy", "torch" or "jax".
        device: kind of device that holds them, "cpu" or "cuda".
        dtype: "float16", "bfloat16", "float32" or "float64", of q, k and v.
        batch, heads, kv_heads, head_dim, v_head_dim: sizes; v_head_dim is head_dim where only routing is asked.
        backward: whether gradients are asked for.
        views: other libraries in which the same memory can be shown, see `shown_to`.
        deterministic: whether results must be bitwise repeatable and batch-invariant.
        options: see `Options`.
    """

    plan: Plan
    framework: str
    device: str
    dtype: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    backward: bool = False
    views: tuple[str, ...] = ()
    deterministic: bool = False
    options: Options = Options()

    def shown_to(self, capabilities: Capabilities) -> Problem:
        """Return the problem in the library in which a backend is given it: its own if the backend takes that."""
        if self.framework in capabilities.frameworks:
            return self
        taken = [view for view in self.views if view in capabilities.frameworks]
        return replace(self, framework=taken[0]) if taken else self

    @property
    def group(self) -> int:
        """Query heads that read one key head."""
        return self.heads // self.kv_heads

    def __str__(self) -> str:
        return (
            f"{self.dtype} on {self.device} ({self.framework}), heads {self.heads}/{self.kv_heads}, "
            f"head_dim {self.head_dim}/{self.v_head_dim}{', backward' if self.backward else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do, as data: for dispatch, tests and the tables of the documentation."""

    frameworks: tuple[str, ...]
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    max_head_dim: int
    backward: bool
    deterministic: bool
    precisions: tuple[str, ...] = ("ieee",)
    anchor_engines: tuple[str, ...] = ("own",)

    def refuses(self, problem: Problem) -> str | None:
        """Return why a problem lies outside these capabilities, or None."""
        dims = max(problem.head_dim, problem.v_head_dim)
        if problem.device not in self.devices:
            return f"runs on {', '.join(self.devices)}, not {problem.device}"
        if problem.framework not in self.frameworks:
            return f"takes {', '.join(self.frameworks)} arrays, not {problem.framework}"
        if problem.dtype not in self.dtypes:
            return f"takes {', '.join(self.dtypes)}, not {problem.dtype}"
        if dims > self.max_head_dim:
            return f"takes head_dim up to {self.max_head_dim}, not {dims}"
        if problem.backward and not self.backward:
            return "has no backward"
        if problem.deterministic and not self.deterministic:
            return "is not deterministic"
        if problem.options.precision not in self.precisions:
            return f"computes in {', '.join(self.precisions)} precision, not {problem.options.precision}"
        if problem.options.anchors not in ("auto", *self.anchor_engines):
            return f'has the anchor engines {", ".join(self.anchor_engines)}, not "{problem.options.anchors}"'
        return None


@runtime_checkable
class Backend(Protocol):
    """One way to execute layouts. Arrays come as (batch, tokens, heads, head_dim), any strides; packed: batch 1.

    Implementations never write to their inputs, and return arrays that alias none of them.
    """

    name: str
    capabilities: Capabilities

    def refuses(self, problem: Problem) -> str | None:
        """Return None if the backend can run the problem, else the reason with its values."""

    def version(self) -> str:
        """Return the versions and devices that results depend on, for reports."""

    def default_config(self, problem: Problem) -> Any:
        """Return the config used where the caller gives none."""

    def search_space(self, problem: Problem, operation: Operation) -> Iterable[Any]:
        """Return the configs worth trying for an operation, the default first; it alone where nothing is to tune."""

    def pool(self, problem: Problem, k: Array, key_lengths: Array | None, *, config: Any = None) -> Array:
        """Return the mean key of each chunk, float32 (batch, kv_heads, chunks, head_dim); 0 where it has no key.

        Packed: (1, kv_heads, chunks of all samples, head_dim), sample after sample.
        """

    def route(
        self,
        problem: Problem,
        q: Array,
        centroids: Array,
        key_lengths: Array | None,
        randomness: Randomness | None,
        *,
        config: Any = None,
    ) -> Array:
        """Return `Layout.selected`."""

    def attend(
        self, problem: Problem, q: Array, k: Array, v: Array, layout: Layout, scale: float, *, config: Any = None
    ) -> Result:
        """Return out (batch, queries, heads, v_head_dim) and lse (batch, heads, queries)."""

    def attend_backward(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        v: Array,
        layout: Layout,
        scale: float,
        result: Result,
        d_out: Array,
        d_lse: Array | None,
        *,
        config: Any = None,
    ) -> tuple[Array, Array, Array]:
        """Return dq, dk, dv from the merged result of the forward."""


class Hardware(NamedTuple):
    """What a problem runs on.

    Attributes:
        device: the model, as its maker names it.
        architecture: what compilers call it, "sm_90", "znver4": tuned results of one device serve the others of it.
        driver: version of the driver, "" where there is none.
    """

    device: str
    architecture: str
    driver: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a config is expected to cost, before it is tried.

    Attributes:
        seconds: the time of the operation by counted bytes and operations; only its order among configs matters.
            None where nothing can be said.
        reason: why the config cannot run, with the values, or None.
    """

    seconds: float | None = None
    reason: str | None = None


@runtime_checkable
class Tunable(Protocol):
    """What a backend may offer beside `Backend`, so that tuning prunes by its own cost model and shares by hardware."""

    def hardware(self, problem: Problem) -> Hardware:
        """Return what the problem runs on."""

    def estimate(self, problem: Problem, operation: Operation, config: Any) -> Estimate:
        """Return what a config would cost: shared memory, registers, occupancy, caches, counted bytes and FLOPs."""


def lse_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype of lse and of all accumulation: float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def empty_like(array: NDArray[Any], shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return a new array of another size whose axes lie in memory in the order of `array`'s."""
    return np.empty_like(array, dtype=dtype, shape=shape, subok=False)
