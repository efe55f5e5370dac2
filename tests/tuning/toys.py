"""A backend that computes as the reference does, and records under which config each operation ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsemoc.backends import Problem
from sparsemoc.backends.protocol import Estimate, Hardware, Operation
from sparsemoc.backends.reference import ReferenceBackend
from sparsemoc.spec.checks import whole

#: A tile takes so many bytes of the toy's shared memory, and there are so many.
BYTES, SHARED = 100, 100_000


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """The tunables of a toy."""

    tile: int = 64
    stages: int = 2

    def __post_init__(self) -> None:
        whole(self.tile, "ToyConfig: tile", least=1)


class Toy(ReferenceBackend):
    """The backend.

    Attributes:
        device, architecture, driver, versions: of its environment.
        ran: operation and config of each call, None for the default.
        asked: how often its search space was.
    """

    name = "toy"

    def __init__(
        self, device: str = "Toy 1", architecture: str = "toy_1", driver: str = "1.0", versions: str = "toy 1"
    ) -> None:
        self.device, self.architecture, self.driver, self.versions = device, architecture, driver, versions
        self.ran: list[tuple[str, Any]] = []
        self.asked = 0

    def version(self) -> str:
        return self.versions

    def default_config(self, problem: Problem) -> Any:
        return ToyConfig()

    def search_space(self, problem: Problem, operation: Operation) -> list[Any]:
        self.asked += 1
        tiles = (64, 128, 256, 4096) if operation in ("attend", "attend_backward") else (64,)
        return [ToyConfig(tile=tile) for tile in tiles]

    def hardware(self, problem: Problem) -> Hardware:
        return Hardware(self.device, self.architecture, self.driver)

    def estimate(self, problem: Problem, operation: Operation, config: Any) -> Estimate:
        needed, limit = config.tile * BYTES, problem.options.max_workspace
        if needed > SHARED:
            return Estimate(reason=f"needs {needed} bytes of shared memory, more than {SHARED}")
        if limit is not None and needed > limit:
            return Estimate(reason=f"needs {needed} bytes of workspace, more than max_workspace = {limit}")
        return Estimate(seconds=1.0 / config.tile)

    def pool(self, *given: Any, config: Any = None) -> Any:
        return self._recorded("pool", given, config)

    def route(self, *given: Any, config: Any = None) -> Any:
        return self._recorded("route", given, config)

    def attend(self, *given: Any, config: Any = None) -> Any:
        return self._recorded("attend", given, config)

    def attend_backward(self, *given: Any, config: Any = None) -> Any:
        return self._recorded("attend_backward", given, config)

    def _recorded(self, operation: str, given: tuple[Any, ...], config: Any) -> Any:
        self.ran.append((operation, config))
        return getattr(super(), operation)(*given)
