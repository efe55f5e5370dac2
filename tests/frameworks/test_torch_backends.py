"""A backend that takes tensors gets the tensors, and the host reads none of them on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.backends import Problem, registry
from sparsemoc.testing.implementations import ApiImplementation
from sparsemoc.testing.problems import Problem as Drawn

if TYPE_CHECKING:
    from tests.frameworks.conftest import Hollow, Small, Telling

torch = pytest.importorskip("torch", reason="tensors need torch")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Make a backend the first that "auto" asks, before the reference."""

    def put(backend: Any) -> None:
        monkeypatch.setattr(registry, "BUILT_IN", {backend.name: "", "reference": "sparsemoc.backends.reference"})
        load = registry._load
        monkeypatch.setattr(registry, "_load", lambda name: backend if name == backend.name else load(name))
        registry.backend_names.cache_clear()

    yield put
    registry.backend_names.cache_clear()


@pytest.fixture
def bare_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call what the operators run, so that tensors without data reach the backend and not the operators' fakes."""
    from sparsemoc.frameworks import torch_ops

    for name in ("pool", "route", "attend", "attend_backward"):
        monkeypatch.setattr(torch_ops, name, getattr(torch_ops, name)._init_fn)


@pytest.mark.usefixtures("bare_operators")
def test_the_host_reads_nothing(hollow: Hollow, small: Small) -> None:
    """Tensors without data go through every function, with padding, dropout and gradients."""
    q, k, v = small.each(lambda x: x.to("meta"), small.qkv())
    lengths, seed = torch.tensor(small.LENGTHS).to("meta"), torch.tensor(3, dtype=torch.int32).to("meta")
    given: dict[str, Any] = {"key_lengths": lengths, "training": True, "seed": seed, "backend": hollow}
    out, lse, layout = moc.attention(q, k, v, small.DROPOUT, **given, return_lse=True, return_layout=True)
    assert {x.device.type for x in (out, lse, layout.selected, layout.key_lengths)} == {"meta"}
    random = hollow.given["route"][4]
    assert (random.seed.device.type, random.seed.dtype, random.seed.ndim) == ("meta", torch.int64, 0)
    assert hollow.given["route"][3].dtype is torch.int32
    grads = moc.attention_grads(q, k, v, small.DROPOUT, out, d_lse=lse, **given)
    assert [grad.shape for grad in grads] == [x.shape for x in (q, k, v)]
    moc.attend(q, k, v, moc.route(q, k, small.SPEC, backend=hollow), backend=hollow)
    moc.pool(k, moc.plan(small.SPEC), backend=hollow)
    repr(layout)


def test_tensors_without_data_have_results_without_data(hollow: Hollow, small: Small) -> None:
    q, k, v = small.each(lambda x: x.to("meta").requires_grad_(), small.qkv())
    out, lse = moc.attention(q, k, v, small.SPEC, backend=hollow, return_lse=True)
    (out.sum() + lse.sum()).backward()
    assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]
    assert (out.device.type, not hollow.given) == ("meta", True)


def test_it_gets_the_tensors_themselves(hollow: Hollow, small: Small) -> None:
    q, k, v = small.leaves()
    layout = moc.route(q, k, small.SPEC, key_lengths=small.LENGTHS, seed=-1, backend=hollow)
    moc.attend(q, k, v, layout, backend=hollow)
    problem, *arrays, given, _ = hollow.given["attend"]
    assert (problem.framework, problem.device, problem.views) == ("torch", "cpu", ("numpy",))
    assert problem.backward
    assert [x.data_ptr() for x in arrays] == [x.data_ptr() for x in (q, k, v)]
    assert not any(x.requires_grad for x in arrays)
    assert given.selected.data_ptr() == layout.selected.data_ptr()
    assert given.key_lengths.data_ptr() == layout.key_lengths.data_ptr()


def test_a_whole_seed_keeps_its_bits(hollow: Hollow, small: Small) -> None:
    q, k, _ = small.qkv()
    moc.route(q, k, small.DROPOUT, seed=-1, training=True, batch_start=3, head_start=4, backend=hollow)
    random = hollow.given["route"][4]
    assert (random.seed.item(), random.key) == (-1, (2**32 - 1, 2**32 - 1))
    assert (random.batch_start, random.head_start) == (3, 4)


def test_auto_takes_the_first_that_can(alone: Callable[[Any], None], hollow: Hollow, small: Small) -> None:
    alone(hollow)
    tensors = small.qkv()
    moc.attention(*tensors, small.SPEC)
    assert hollow.given["attend"][0].framework == "torch"
    hollow.given.clear()
    moc.attention(*small.each(small.numpy, tensors), small.SPEC)  # it takes no NumPy arrays: the reference serves
    assert not hollow.given
    with pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(*tensors, small.SPEC, options=moc.Options(anchors="fast"))
    assert str(raised.value) == (
        "attention: no backend can run this problem (float32 on cpu (torch), heads 4/2, head_dim 8/5).\n"
        '  hollow: has the anchor engines own, not "fast"\n'
        '  reference: has the anchor engines own, not "fast"'
    )


def test_a_named_backend_is_obeyed_or_refuses(backend: str, hollow: Hollow, small: Small) -> None:
    q, k, v = small.qkv()
    with pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(*small.each(lambda x: x.to("meta"), (q, k, v)), small.SPEC, backend=backend)
    assert str(raised.value) == (
        f'attention: backend "{backend}" runs on cpu, not meta (float32 on meta (torch), heads 4/2, head_dim 8/5). '
        'Hint: backend="auto" chooses one that can, if there is one.'
    )
    with pytest.raises(moc.UnsupportedError, match=r'backend "hollow" takes torch arrays, not numpy \(float32 on cpu'):
        moc.attention(*small.each(small.numpy, (q, k, v)), small.SPEC, backend=hollow)


def test_a_problem_is_shown_in_the_library_that_a_backend_takes(hollow: Hollow, telling: Telling, small: Small) -> None:
    q, k, _ = small.qkv()
    moc.route(q, k, small.SPEC, backend=hollow)
    problem: Problem = hollow.given["route"][0]
    assert problem.shown_to(hollow.capabilities) is problem
    assert problem.shown_to(telling.capabilities) == replace(problem, framework="numpy")
    other = replace(telling.capabilities, frameworks=("cupy",))
    assert problem.shown_to(other) is problem
    assert other.refuses(problem) == "takes cupy arrays, not torch"


def test_deterministic_is_what_torch_is_set_to(telling: Telling, small: Small) -> None:
    q, k, v = small.qkv()

    def asked(x: Any, **options: Any) -> bool:
        moc.attention(x, k if x is q else small.numpy(k), v if x is q else small.numpy(v), small.SPEC,
                      backend=telling, **options)  # fmt: skip
        return bool(telling.given["attend"][0].deterministic)

    assert not asked(q)
    torch.use_deterministic_algorithms(True)
    try:
        assert asked(q)
        assert not asked(q, deterministic=False)
        assert not asked(small.numpy(q))
    finally:
        torch.use_deterministic_algorithms(False)
    assert asked(q, deterministic=True)


def test_the_suite_gives_tensors_where_a_backend_takes_no_others(hollow: Hollow, small: Small) -> None:
    problem = Drawn(small.SPEC, (small.STREAM,), batch=2, heads=4, kv_heads=2, dtype="bfloat16", strides="sliced")
    found = ApiImplementation(hollow, device="cpu").pool(problem)
    given = hollow.given["pool"][1]
    assert isinstance(given, torch.Tensor)
    assert isinstance(found, np.ndarray)
    assert given.stride() == tuple(n // 2 for n in problem.present(problem.arrays.k).strides)
    assert torch.equal(given.float(), torch.from_numpy(problem.arrays.k.astype(np.float32)))


def test_the_suite_refuses_other_libraries() -> None:
    with pytest.raises(ValueError, match=r'framework must be "numpy", "cupy", "jax" or "torch", got \'mlx\'\.'):
        ApiImplementation("reference", framework="mlx")
    with pytest.raises(ValueError, match=r"device must be left out for NumPy, CuPy and JAX arrays, got 'cuda'\."):
        ApiImplementation("reference", device="cuda")
