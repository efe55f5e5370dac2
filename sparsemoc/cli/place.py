"""In which library and on which device arrays are made for a backend."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends import Backend, Problem, available_backends, get_backend
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.plan import plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.tuning.key import Environment, environment_of


class Place(NamedTuple):
    """A library, "numpy", "cupy" or "torch", and a device, "cpu" or "cuda"."""

    framework: str
    device: str

    @property
    def dtype(self) -> str:
        """The dtype that is usual there."""
        return "bfloat16" if self.device == "cuda" else "float32"

    def put(self, array: NDArray[Any]) -> Any:
        """Return a NumPy array there."""
        if self.framework == "numpy":
            return array
        if self.framework == "cupy":
            import cupy

            return cupy.asarray(array)
        import torch

        if array.dtype.name == "bfloat16":  # torch reads no such NumPy array; by way of float32 no bit is lost
            return torch.from_numpy(array.astype(np.float32)).to(self.device, torch.bfloat16)
        return torch.from_numpy(array).to(self.device)


def place_for(name: str, function: str) -> Place:
    """Return where to make arrays for a backend by name; with "auto" on the GPU, if a backend runs on one here.

    Raises:
        UnsupportedError: there is no such backend, or it takes arrays of no library that is installed here.
    """
    if name == "auto":
        ready = [get_backend(other) for other, reason in available_backends().items() if reason is None]
        found = [place for backend in ready if (place := place_of(backend)) is not None]
        return max(found, key=lambda place: place.device == "cuda")
    backend = get_backend(name, function)
    place = place_of(backend)
    if place is None:
        taken = backend.capabilities
        raise UnsupportedError(
            f'{function}: backend "{name}" takes {", ".join(taken.frameworks)} arrays on {", ".join(taken.devices)}: '
            "there are none such here. Hint: `sparsemoc doctor` shows what is installed."
        )
    return place


def place_of(backend: Backend) -> Place | None:
    """Return where to make arrays for a backend: NumPy's, else torch's, else CuPy's, on the GPU where it can."""
    frameworks, devices = backend.capabilities.frameworks, backend.capabilities.devices
    if "numpy" in frameworks and "cpu" in devices:
        return Place("numpy", "cpu")
    if "torch" in frameworks and find_spec("torch") is not None:
        import torch

        if "cuda" in devices and torch.cuda.is_available():
            return Place("torch", "cuda")
        if "cpu" in devices:
            return Place("torch", "cpu")
    if "cupy" in frameworks and find_spec("cupy") is not None:
        import cupy

        if cupy.cuda.is_available():
            return Place("cupy", "cuda")
    return None


def environment_here(backend: Backend) -> Environment | None:
    """Return in which environment a backend runs here, None where no array of its own can be made."""
    place = place_of(backend)
    if place is None:
        return None
    problem = Problem(
        plan=plan(RoutingSpec(chunks=Chunks(size=16), top_k=1), tokens=64), framework=place.framework,
        device=place.device, dtype=backend.capabilities.dtypes[0], batch=1, heads=1, kv_heads=1, head_dim=64,
        v_head_dim=64,
    )  # fmt: skip
    return environment_of(backend, problem)
