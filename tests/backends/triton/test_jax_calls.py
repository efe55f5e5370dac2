"""Calls on JAX arrays: each launch in Triton's interpreter, all else traced and compiled by JAX.

What is held against it is the same backend on torch tensors. Both run the same kernels in the same order, so that the
results must be the same to the last bit. jax-triton itself takes no part: `python -m bench.jax_lowering` tries it.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import sparsemoc as moc
from sparsemoc.backends import Problem, Randomness, Result
from sparsemoc.backends.protocol import Hardware
from sparsemoc.backends.triton import entry, gpu, jax_calls
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.entry import BACKEND
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import seed_key

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy

SMALL = TritonConfig(
    anchor_rows=16, anchor_keys=16, anchor_split=16, anchor_union=4, routed_rows=16, routed_keys=16, merge_rows=16,
    pool_keys=4, route_units=16, route_chunks=16, drop_units=16, drop_chunks=16, index_rows=16, index_entries=16,
    grad_keys=16, grad_rows=16, grad_segment=16, grad_query_rows=16, grad_query_keys=16,
)  # fmt: skip
STREAM = moc.Stream((moc.Segment("text", 2), moc.Segment("video", 6), moc.Segment("video", 4)))
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=4), top_k=2)
DROPS = moc.RouteDropout(off=0.9, into=1.0, into_max=2)
CUT = moc.Options(max_workspace=3500)
#: Name -> spec, and what is asked for beside it.
CASES: dict[str, tuple[moc.RoutingSpec, dict[str, Any]]] = {
    "half precision, dropout": (replace(SPEC, causal="chunk", dropout=DROPS), {"dtype": "bfloat16", "seed": 2**32 - 3}),
    "window, padding": (replace(SPEC, anchors=(moc.window(2), "text")), {"lengths": [[2, 5, 4]]}),
    "blocks": (replace(SPEC, unit=moc.Block(4), causal="token"), {"dtype": "float16"}),
    "slices, fixed order": (replace(SPEC, top_k=1), {"options": CUT, "lanes": (2, 2), "deterministic": True}),
    "no routes": (replace(SPEC, top_k=0), {}),
    "no anchors": (replace(SPEC, anchors=(), dense_queries=()), {"lengths": [[0, 3, 0]]}),
}
#: XLA launches from threads of its own, several at a time; the interpreter is not made for it.
ALONE = threading.Lock()


def interpreted(target: int, launch: Any) -> Mapping[str, Any]:
    """Launch a kernel in the interpreter, on copies; what is not declared as written must come back unchanged."""
    assert target == 90
    names = [name for name, value in launch.given.items() if hasattr(value, "shape")]
    wanted = (*launch.changed, *launch.fresh)

    def run(*arrays: Any) -> list[Any]:
        held = {name: np.array(array) for name, array in zip(names, arrays, strict=True)}
        held |= {name: np.full(size, 77, dtype) for name, (size, dtype) in launch.fresh.items()}
        tensors = {name: tensor_of(array.copy()) for name, array in held.items()}
        with ALONE, np.errstate(all="ignore"):
            launch.kernel[launch.grid](
                **(dict(launch.given) | tensors), num_warps=launch.warps, num_stages=launch.stages
            )
        after = {name: array_of(tensor, held[name].dtype) for name, tensor in tensors.items()}
        changed = [name for name in held if after[name].tobytes() != held[name].tobytes()]
        assert set(changed) <= set(wanted), f"{launch.kernel.fn.__name__} writes to {changed}"
        return [after[name] for name in wanted]

    shapes = [(launch.given[name].shape, launch.given[name].dtype) for name in launch.changed]
    shapes += [((size,), dtype) for size, dtype in launch.fresh.values()]
    made = jax.pure_callback(
        run,
        [jax.ShapeDtypeStruct(*shape) for shape in shapes],
        *(launch.given[name] for name in names),
        vmap_method="sequential",
    )
    return dict(zip(wanted, made, strict=True))


def tensor_of(array: Any) -> torch.Tensor:
    half = array.dtype == ml_dtypes.bfloat16
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(array)


def array_of(tensor: torch.Tensor, dtype: Any) -> Any:
    return tensor.view(torch.int16).numpy().view(dtype) if tensor.dtype is torch.bfloat16 else tensor.numpy()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the arrays of the CPU pass for those of a GPU."""
    monkeypatch.setattr(jax_calls, "_launch", interpreted)
    monkeypatch.setattr(jax_calls, "refuses", lambda: None)
    monkeypatch.setattr(gpu, "capability", lambda problem: 90)
    monkeypatch.setattr(gpu, "hardware", lambda problem: Hardware("pretended", "sm_90"))


def drawn(shape: tuple[int, ...], seed: int, dtype: str = "float32") -> Any:
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def results(name: str, framework: str) -> dict[str, Any]:
    """Return all that the backend computes in a case, as NumPy arrays."""
    spec, wishes = CASES[name]
    dtype, lengths, (batch, kv_heads) = (
        wishes.get("dtype", "float32"),
        wishes.get("lengths"),
        wishes.get("lanes", (1, 1)),
    )
    jaxes = framework == "jax"
    give: Any = jnp.asarray if jaxes else tensor_of
    plan = moc.plan(spec, q_tokens=10)
    problem = Problem(
        plan=plan, framework=framework, device="cuda" if jaxes else "cpu", dtype=dtype, batch=batch, heads=2,
        kv_heads=kv_heads, head_dim=8, v_head_dim=12, backward=True, deterministic=wishes.get("deterministic", False),
        options=wishes.get("options", moc.Options()),
    )  # fmt: skip
    assert BACKEND.refuses(problem) is None
    q, k, v, d_out = (
        give(drawn((batch, tokens, heads, width), seed, dtype))
        for seed, (tokens, heads, width) in enumerate(((10, 2, 8), (12, kv_heads, 8), (12, kv_heads, 12), (10, 2, 12)))
    )
    d_lse = give(drawn((batch, 2, 10), 9))
    key_lengths = None if lengths is None else give(np.array(lengths, np.int32))
    seed = wishes.get("seed")
    randomness = (
        None if seed is None else Randomness(jnp.uint32(seed) if jaxes else seed, 3, jnp.int32(5) if jaxes else 5)
    )
    centroids = BACKEND.pool(problem, k, key_lengths, config=SMALL)
    selected = BACKEND.route(problem, q, centroids, key_lengths, randomness, config=SMALL)
    layout = Layout(selected, plan, key_lengths)
    out, lse = BACKEND.attend(problem, q, k, v, layout, -0.3, config=SMALL)
    grads = BACKEND.attend_backward(problem, q, k, v, layout, -0.3, Result(out, lse), d_out, d_lse, config=SMALL)
    names = ("centroids", "selected", "out", "lse", "dq", "dk", "dv")
    return {name: host(one) for name, one in zip(names, (centroids, selected, out, lse, *grads), strict=True)}


def host(array: Any) -> Any:
    return np.asarray(array.float() if isinstance(array, torch.Tensor) and array.is_floating_point() else array)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("name", CASES)
def test_jax_arrays_get_what_torch_tensors_get(name: str) -> None:
    wanted, found = results(name, "torch"), results(name, "jax")
    for what, array in found.items():
        np.testing.assert_array_equal(array.astype(wanted[what].dtype), wanted[what], err_msg=what)


@pytest.mark.usefixtures("pretended")
def test_gradients_and_vmap_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsemoc.frameworks import jax as jax_arrays

    spec = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=1, anchors=("chunk",))
    q, k, v = (jnp.asarray(drawn((2, 1, 8, 1, 4), seed)) for seed in range(3))

    def loss(backend: str) -> Any:
        def total(q: Any, k: Any, v: Any) -> Any:
            out, lse = moc.attention(q, k, v, spec, backend=backend, return_lse=True)
            return (out**2).sum() + lse.sum()

        return jax.vmap(jax.grad(total, (0, 1, 2)))(q, k, v)

    wanted = loss("reference")
    monkeypatch.setattr(jax_arrays, "device", lambda array: "cuda")
    for found, one in zip(loss("triton"), wanted, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, jnp.uint32(2**32 - 1), jnp.int32(-3), jnp.int8(-1), jnp.uint8(255)])
def test_a_seed_becomes_its_two_words_and_the_starts_follow(seed: Any) -> None:
    found = jax_calls._counters(Randomness(seed, 2**32 - 1, jnp.int32(5)))
    assert found.dtype == jnp.int32
    assert np.asarray(found).view(np.uint32).tolist() == [*seed_key(int(seed)), 2**32 - 1, 5]


def problem_of(device: str, **wishes: Any) -> Problem:
    return Problem(
        plan=moc.plan(SPEC), framework="jax", device=device, dtype="float32", batch=1, heads=1, kv_heads=1, head_dim=8,
        v_head_dim=8, **wishes,
    )  # fmt: skip


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_calls, "refuses", lambda: None)
    assert BACKEND.refuses(problem_of("cpu")) == "takes JAX arrays on cuda alone, not cpu"
    wished = problem_of("cuda", options=moc.Options(anchors="sdpa"))
    assert BACKEND.refuses(wished) == 'has the anchor engine own alone for JAX arrays, not "sdpa"'


@pytest.mark.parametrize(
    ("bridge", "library", "reason"),
    [
        ("0.4.1", "0.11.2", None),
        ("0.3.1", "0.10.2", "needs jax-triton 0.4 for JAX arrays, not 0.3.1"),
        ("0.4.1", "0.12.0.1", "needs jax 0.11 with jax-triton 0.4.1, not 0.12.0.1"),
    ],
)
def test_versions_that_do_not_work_together(
    bridge: str, library: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_calls, "version", {"jax-triton": bridge, "jax": library}.get)
    assert jax_calls.refuses() == reason


def test_without_jax_triton_the_hint_says_what_to_install() -> None:
    if importlib.util.find_spec("jax_triton") is not None:
        pytest.skip("jax-triton is installed")
    assert str(jax_calls.refuses()).startswith('needs jax-triton for JAX arrays. Hint: pip install "jax-triton')


@pytest.mark.parametrize("before", [None, "/some/folder"])
def test_importing_jax_triton_leaves_the_environment(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    if before is not None:
        monkeypatch.setenv("TRITON_CACHE_DIR", before)

    def meddling(name: str) -> str:
        os.environ["TRITON_CACHE_DIR"] = ""
        return name

    monkeypatch.setattr(jax_calls, "import_module", meddling)
    assert jax_calls.import_jax_triton.__wrapped__() == "jax_triton"
    assert os.environ.get("TRITON_CACHE_DIR") == before


def test_torch_is_not_needed_beside_jax_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(entry, "_driver", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    assert entry._missing() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "triton" else None)
    assert (
        entry._missing()
        == 'torch is not installed. Hint: pip install "sparsemoc[triton]", or jax-triton for JAX arrays'
    )
