"""Which backend runs: a name is obeyed or refused, an object is taken, entry points add theirs, "auto" chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Problem, get_backend, registry
from sparsemoc.backends.reference import ReferenceBackend

Q = np.ones((1, 8, 2, 4), np.float32)
SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=2), top_k=1)


class Other(ReferenceBackend):
    """A third party's backend: the reference with a wish of its own."""

    name = "other"

    def refuses(self, problem: Problem) -> str | None:
        return "takes two heads, not one" if problem.heads == 1 else super().refuses(problem)


class Entry:
    """What importlib.metadata gives for an entry point."""

    def __init__(self, name: str, load: Callable[[], object]) -> None:
        self.name = name
        self.load = load


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def put(**backends: Callable[[], object]) -> None:
        def entry_points(*, group: str, name: str | None = None) -> list[Entry]:
            assert group == "sparsemoc.backends"
            return [Entry(key, load) for key, load in backends.items() if name in (None, key)]

        monkeypatch.setattr(registry, "entry_points", entry_points)
        registry._load.cache_clear()
        registry.backend_names.cache_clear()

    yield put
    registry._load.cache_clear()
    registry.backend_names.cache_clear()


def broken() -> object:
    raise ImportError("No module named 'warpdrive'")


def test_the_backends_of_our_own() -> None:
    names = moc.available_backends()
    assert list(names)[:4] == ["numba", "triton", "cupy", "reference"]
    assert names["reference"] is None
    assert isinstance(get_backend("reference"), moc.Backend)


def test_an_object_is_taken_as_it_is() -> None:
    expected = moc.attention(Q, Q, Q, SPEC, backend="reference")
    np.testing.assert_array_equal(moc.attention(Q, Q, Q, SPEC, backend=Other()), expected)
    with pytest.raises(moc.UnsupportedError, match=r'^attention: backend "other" takes two heads, not one'):
        moc.attention(Q[:, :, :1], Q[:, :, :1], Q[:, :, :1], SPEC, backend=Other())


def test_an_entry_point_adds_a_backend(install: Callable[..., None]) -> None:
    install(other=Other)
    assert list(moc.available_backends()) == ["numba", "triton", "cupy", "reference", "other"]
    assert moc.available_backends()["other"] is None
    expected = moc.attention(Q, Q, Q, SPEC, backend="reference")
    np.testing.assert_array_equal(moc.attention(Q, Q, Q, SPEC, backend="other"), expected)


def test_an_entry_point_is_loaded_once_and_when_it_is_asked_for(install: Callable[..., None]) -> None:
    made: list[Other] = []

    def load() -> object:
        made.append(Other())
        return made[-1]

    install(other=load)
    moc.attention(Q, Q, Q, SPEC, backend="reference")
    assert not made
    assert get_backend("other") is get_backend("other") is made[0]
    assert len(made) == 1


def test_our_own_backends_cannot_be_replaced(install: Callable[..., None]) -> None:
    install(reference=Other)
    assert list(moc.available_backends()) == ["numba", "triton", "cupy", "reference"]
    assert get_backend("reference").name == "reference"


def test_a_broken_entry_point_harms_no_other(install: Callable[..., None]) -> None:
    install(broken=broken, number=lambda: 3, other=Other)
    assert moc.available_backends() | {"numba": None, "triton": None, "cupy": None} == {
        "numba": None,
        "triton": None,
        "cupy": None,
        "reference": None,
        "broken": "ImportError: No module named 'warpdrive'",
        "number": "its entry point gives 3 (int), which is no Backend",
        "other": None,
    }
    moc.attention(Q, Q, Q, SPEC)
    with pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(Q, Q, Q, SPEC, backend="broken")
    assert str(raised.value) == (
        "attention: backend \"broken\" is absent: ImportError: No module named 'warpdrive'. "
        "Hint: `sparsemoc doctor` shows all backends."
    )


def test_an_unknown_name_lists_all(install: Callable[..., None]) -> None:
    install(other=Other)
    with pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(Q, Q, Q, SPEC, backend="othr")
    assert str(raised.value) == (
        'attention: backend must be "auto", "numba", "triton", "cupy", "reference" or "other", got \'othr\' (str). '
        'Did you mean "other"?'
    )
    with pytest.raises(moc.UnsupportedError, match=r"^get_backend: backend must be "):
        get_backend("othr")


def test_auto_takes_the_first_that_can(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Counting(Other):
        def route(self, *given: Any, **options: Any) -> Any:
            calls.append(self.name)
            return super().route(*given, **options)

    install(other=Counting)
    monkeypatch.setattr(registry, "BUILT_IN", {})
    moc.attention(Q, Q, Q, SPEC)
    assert calls == ["other"]


def test_auto_prefers_a_backend_that_takes_the_arrays_as_they_are(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that needs them in the form of another library comes last; NumPy's form, on a CPU, costs nothing."""

    def taking(name: str, *frameworks: str) -> Callable[[], object]:
        able = replace(ReferenceBackend.capabilities, frameworks=frameworks, devices=("cpu", "cuda"))
        return type(name, (Other,), {"name": name, "capabilities": able})

    install(a_torch=taking("a_torch", "torch"), b_numpy=taking("b_numpy", "numpy"), c_cupy=taking("c_cupy", "cupy"))
    monkeypatch.setattr(registry, "BUILT_IN", {})
    problem = Problem(
        plan=moc.plan(SPEC, tokens=8), framework="cupy", device="cuda", dtype="float32", batch=1, heads=2, kv_heads=2,
        head_dim=4, v_head_dim=4, views=("torch",),
    )  # fmt: skip
    assert registry.choose(problem, "auto").name == "c_cupy"
    assert registry.choose(problem, "a_torch").name == "a_torch"
    torch = replace(problem, framework="torch", views=())
    assert registry.choose(torch, "auto").name == "a_torch"
    assert registry.choose(replace(torch, framework="jax", device="cpu", views=("numpy",)), "auto").name == "b_numpy"
    registry._load.cache_clear()
    registry.backend_names.cache_clear()
    install(a_torch=taking("a_torch", "torch"), b_numpy=taking("b_numpy", "numpy"))
    assert registry.choose(problem, "auto").name == "a_torch"


def test_auto_lists_every_reason(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install(broken=broken, other=Other)
    monkeypatch.setattr(registry, "BUILT_IN", {"reference": "sparsemoc.backends.reference"})
    one = Q[:, :, :1]
    options = moc.Options(precision="tf32", anchors="fast")
    with pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(one, one, one, SPEC, options=options)
    assert str(raised.value) == (
        "attention: no backend can run this problem (float32 on cpu (numpy), heads 1/1, head_dim 4/4).\n"
        "  reference: computes in ieee precision, not tf32\n"
        "  broken: ImportError: No module named 'warpdrive'\n"
        "  other: takes two heads, not one"
    )


def test_a_name_is_never_replaced() -> None:
    with pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(Q, Q, Q, SPEC, backend="reference", options=moc.Options(anchors="fast"))
    assert str(raised.value) == (
        'attention: backend "reference" has the anchor engines own, not "fast" '
        "(float32 on cpu (numpy), heads 2/2, head_dim 4/4). "
        'Hint: backend="auto" chooses one that can, if there is one.'
    )


def test_a_config_goes_to_its_own_backend_only() -> None:
    config = get_backend("reference").default_config(None)  # type: ignore[arg-type]  # it depends on nothing
    moc.attention(Q, Q, Q, SPEC, backend=Other(), config=config)
    with pytest.raises(moc.SpecError, match='config must be a ReferenceConfig for backend "other", or None, got 3'):
        moc.attention(Q, Q, Q, SPEC, backend=Other(), config=3)
