"""Frameworks: what makes `attention` native to each array library, each imported when its arrays first come."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from sparsemoc.backends import Randomness, Result
from sparsemoc.spec.errors import ShapeError, UnsupportedError, describe
from sparsemoc.spec.layout import Layout

if TYPE_CHECKING:
    from sparsemoc.frameworks.execution import Execution

#: Root module of an array's type -> the module here that serves it.
_MODULES = {name: f"sparsemoc.frameworks.{name}" for name in ("numpy", "cupy", "jax", "torch")}
#: Root modules of array types that belong to a library of another name.
_ALIASES = {"jaxlib": "jax"}


class Framework(Protocol):
    """What a module here holds. Nothing in it reads the data of an array that lies on a device."""

    NAME: str

    def checked(self, array: Any, argument: str, function: str) -> Any:
        """Return a float array in the dtype that it is computed in, or raise where no backend can take it."""

    def device(self, array: Any) -> str:
        """Return the device that holds an array: its kind, and its number where there are several, "cuda:1"."""

    def dtype(self, array: Any) -> str:
        """Return the name of an array's dtype."""

    def integers(self, array: Any, argument: str, function: str, like: Any) -> Any:
        """Return an integer array as int32 on the device of `like`, clamped to [0, 2**31 - 1], or raise."""

    def seed(self, value: Any, like: Any) -> Any:
        """Return a seed as an int in [0, 2**64) or as a 0-d int64 array on the device of `like`, or raise SpecError."""

    def transpose(self, array: Any, axes: tuple[int, ...]) -> Any:
        """Return a view with the axes in another order."""

    def expand(self, array: Any) -> Any:
        """Return a view with a batch axis of 1 in front."""

    def views(self, array: Any) -> tuple[str, ...]:
        """Return the other libraries in which the memory of an array can be shown, best first."""

    def show(self, array: Any, framework: str) -> Any:
        """Return an array in a library, this one or one of `views`: the same memory, without a record of gradients."""

    def own(self, array: Any, like: Any) -> Any:
        """Return an array of a served library in this one, on the device of `like`: the same memory where it can be."""

    def deterministic(self) -> bool:
        """Return whether the library is set to deterministic results."""

    def records(self, *arrays: Any) -> bool:
        """Return whether the library records what is computed from the arrays, to ask for gradients."""

    def pool(self, run: Execution, k: Any, key_lengths: Any) -> Any:
        """Return what `run.compute_pool` gives, as the library records calls: traced, batched, compiled."""

    def route(self, run: Execution, q: Any, centroids: Any, key_lengths: Any, randomness: Randomness | None) -> Any:
        """Return what `run.compute_route` gives, likewise."""

    def attend(self, run: Execution, q: Any, k: Any, v: Any, layout: Layout, scale: float) -> Result:
        """Return what `run.compute_forward` gives, likewise, and differentiable where the library has gradients."""

    def backward(
        self,
        run: Execution,
        q: Any,
        k: Any,
        v: Any,
        layout: Layout,
        scale: float,
        result: Result,
        d_out: Any,
        d_lse: Any,
    ) -> tuple[Any, Any, Any]:
        """Return what `run.compute_backward` gives, likewise."""


def framework_of(function: str, **arrays: Any) -> Framework:
    """Return the framework that serves all the arrays.

    Raises:
        UnsupportedError: something that is no array of a served library.
        ShapeError: arrays of different libraries.
    """
    roots = {argument: _root(type(array)) for argument, array in arrays.items()}
    libraries = {root for root in roots.values() if root is not None}
    if len(libraries) > 1:
        listed = ", ".join(f"`{argument}` from {root or 'none'}" for argument, root in roots.items())
        raise ShapeError(f"{function}: all arrays must come from one library, got {listed}.")
    for argument, root in roots.items():
        if root is None:
            raise UnsupportedError(
                f"{function}: `{argument}` must be a NumPy, CuPy or JAX array or a torch tensor, "
                f"got {describe(arrays[argument])}. Hint: pass numpy.asarray(array)."
            )
    framework: Framework = import_module(_MODULES[libraries.pop()])
    return framework


def _root(kind: type) -> str | None:
    """Return the library of an array type: the first known root module along its bases, None where there is none."""
    roots = [base.__module__.partition(".")[0] for base in kind.__mro__]
    known = (_ALIASES.get(root, root) for root in roots)
    return next((root for root in known if root in _MODULES), None)
