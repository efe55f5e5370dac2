"""What the tests of the diffusers adapter share: captured calls of attention, and models of every family.

Without torch and diffusers the tests are skipped one by one, so both are imported inside.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from sparsemoc import api

#: The model's own: it asks for autocast to float32, which there is none of on the CPU.
MOCHI = pytest.param("mochi", marks=pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"))
NAMES = ("wan", "wan-per-token", "vace", "ltx", "cosmos", "hunyuan", "hunyuan15", "cogvideox", "cogvideox15", MOCHI)


class Calls(list[dict[str, Any]]):
    """Every call of attention: its arguments by name, with q, k, v, spec and the answer."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    attention = api.attention

    def telling(q: Any, k: Any, v: Any, spec: Any, **options: Any) -> Any:
        answer = attention(q, k, v, spec, **options)
        found.append({"q": q, "k": k, "v": v, "spec": spec, **options, "answer": answer})
        return answer

    monkeypatch.setattr(api, "attention", telling)
    return found


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Any:
    from tests.adapters.diffusers.models import CASES

    return CASES[request.param]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost tiny models more than they bring."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Tests take the entry out of the tables of diffusers, as do models that are gone."""
    yield
    from sparsemoc.adapters.diffusers import bridge

    gc.collect()
    assert not bridge.is_installed()
