"""The table of variants names what the kernels take and what the launches give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sparsemoc.backends.triton import forward
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.signatures_forward import kernels
from tests.backends.attention_cases import problem_of, routes
from tests.backends.triton.test_forward import SMALL, run


class _Spy:
    """A kernel that records the names of what it is launched with."""

    def __init__(self, kernel: Any, seen: dict[str, set[str]], name: str) -> None:
        self.kernel, self.seen, self.name = kernel, seen, name

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(**arguments: Any) -> Any:
            self.seen[self.name] = set(arguments) - {"num_warps", "num_stages"}
            return self.kernel[grid](**arguments)

        return launch


def test_launches_give_what_the_signatures_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}
    for name in ("attend_anchors", "attend_routed", "merge"):
        monkeypatch.setattr(forward, name, _Spy(getattr(forward, name), seen, name))
    problem = problem_of()
    run(problem, routes(problem), SMALL)
    for variant in kernels(SMALL, 8, 12, "float32"):
        assert set(variant.signature) == seen[variant.name.split()[0]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_constant_is_declared(dtype: str) -> None:
    variants = kernels(TritonConfig(), 128, 128, dtype)
    assert len({variant.name for variant in variants}) == len(variants)
    for variant in variants:
        assert {name for name, kind in variant.signature.items() if kind == "constexpr"} == set(variant.constants)
        assert list(variant.signature) == variant.kernel.arg_names
