"""What the backend refuses and says, how it is reached, and that a call never waits for the device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import sparsemoc as moc
from sparsemoc.backends import Problem
from sparsemoc.backends.protocol import OPERATIONS
from sparsemoc.backends.triton import forward, gpu
from sparsemoc.backends.triton.config import TritonConfig, default_config
from sparsemoc.backends.triton.entry import BACKEND

SPEC = moc.RoutingSpec(chunks=moc.Chunks(size=8), top_k=2, anchors=("chunk",))


def qkv(tokens: int = 40, head_dim: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((1, tokens, 2, head_dim), generator=made).to(dtype) for _ in range(3))
    return q, k, v


def attention(q: Any, k: Any, v: Any, spec: moc.RoutingSpec = SPEC, **options: Any) -> Any:
    return moc.attention(q, k, v, spec, backend="triton", **options)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(moc.UnsupportedError) as caught:
        call()
    return str(caught.value)


def test_it_is_reached_by_name_and_agrees_with_the_reference() -> None:
    arrays = qkv()
    wanted = moc.attention(*arrays, SPEC, backend="reference")
    torch.testing.assert_close(attention(*arrays), wanted, rtol=1e-5, atol=1e-6)


def test_auto_leaves_cpu_tensors_to_the_cpu_backend() -> None:
    arrays = qkv()
    assert torch.equal(moc.attention(*arrays, SPEC), moc.attention(*arrays, SPEC, backend="numba"))


def test_gradients_flow_through_autograd() -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    out, lse = attention(q, k, v, return_lse=True)
    grads = torch.autograd.grad((out * 2).sum() + lse.sum(), (q, k, v))
    d_out, d_lse = torch.full_like(out, 2), torch.ones_like(lse)
    wanted = moc.attention_grads(q, k, v, SPEC, d_out, d_lse=d_lse, backend="reference")
    for grad, one in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, one, rtol=1e-4, atol=1e-5)


def test_numpy_arrays_are_refused() -> None:
    text = refused(lambda: attention(*(x.numpy() for x in qkv())))
    assert 'backend "triton" takes torch, jax arrays, not numpy' in text


def test_float64_is_refused() -> None:
    assert "takes float16, bfloat16, float32, not float64" in refused(lambda: attention(*qkv(dtype=torch.float64)))


def test_a_large_head_dim_is_refused() -> None:
    assert "takes head_dim up to 256, not 257" in refused(lambda: attention(*qkv(head_dim=257)))


def test_more_routes_than_a_list_holds_are_refused() -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=1), top_k=513, anchors=())
    assert "keeps at most 512 routes to a query, not 513" in refused(lambda: attention(*qkv(520), spec=spec))


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ("sdpa", "the spec has no anchors"),
        ("flash", 'has the anchor engines own, sdpa, cudnn, flash_attn, not "flash"'),
    ],
)
def test_an_anchor_engine_is_obeyed_or_refused(engine: str, reason: str) -> None:
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=8), top_k=2, anchors=())
    assert reason in refused(lambda: attention(*qkv(), spec=spec, options=moc.Options(anchors=engine)))


@pytest.mark.parametrize("backward", [False, True])
def test_too_small_a_workspace_is_refused_with_what_is_needed(backward: bool) -> None:
    q, k, v = qkv()
    options = moc.Options(max_workspace=64)

    def call() -> Any:
        if backward:
            return moc.attention_grads(q, k, v, SPEC, q, options=options, backend="triton")
        return attention(q, k, v, options=options)

    text = refused(call)
    assert "bytes of workspace for one batch row and key head, more than max_workspace = 64" in text


def test_a_workspace_that_it_says_is_enough_is_enough() -> None:
    arrays = qkv()
    text = refused(lambda: attention(*arrays, options=moc.Options(max_workspace=64)))
    least = int(text.partition("needs ")[2].partition(" bytes")[0])
    assert torch.equal(attention(*arrays, options=moc.Options(max_workspace=least)), attention(*arrays))


def test_the_workspace_is_told_and_kept_under_the_limit() -> None:
    one = _problem("cpu")
    least = BACKEND.workspace(one) // 2  # two key heads fit the default limit at once
    assert BACKEND.workspace(replace(one, options=moc.Options(max_workspace=2 * least - 1))) == least
    assert BACKEND.workspace(replace(one, options=moc.Options(max_workspace=2 * least))) == 2 * least
    assert BACKEND.workspace(replace(one, backward=True)) >= 2 * least


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "capability", lambda problem: 75)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(BACKEND, "capabilities", replace(BACKEND.capabilities, devices=("cuda",)))
    assert BACKEND.refuses(_problem("cuda")) == "runs on GPUs from sm_80 on, not on Tesla T4 (sm_75)"


def _problem(device: str) -> Any:
    return Problem(
        plan=moc.plan(SPEC, tokens=40), framework="torch", device=device, dtype="float16", batch=1, heads=2, kv_heads=2,
        head_dim=8, v_head_dim=8,
    )  # fmt: skip


def test_out_of_memory_says_which_option_lowers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(forward, "attend", fail)
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 20\.00 GiB") as caught:
        attention(*qkv())
    assert "float32 on cpu (torch), heads 2/2, head_dim 8/8" in str(caught.value)
    assert "Options(max_workspace=bytes), 805306368 where None" in str(caught.value)


def test_without_a_gpu_it_is_absent_and_says_why() -> None:
    code = "import sparsemoc; print(sparsemoc.available_backends()['triton'])"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "there is no NVIDIA driver" in done.stdout or "finds no CUDA device" in done.stdout
    assert "TRITON_INTERPRET=1" in done.stdout


def test_version_names_triton_and_how_it_runs() -> None:
    assert BACKEND.version().startswith("triton 3.")
    assert BACKEND.version().endswith("interpreted")


def test_a_config_of_the_caller_is_taken_and_changes_no_value_much() -> None:
    arrays = qkv()
    config = TritonConfig(anchor_rows=16, anchor_keys=16, routed_rows=16, routed_keys=16, route_units=16)
    torch.testing.assert_close(attention(*arrays, config=config), attention(*arrays), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_the_search_space_is_of_the_gpu_at_hand(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "capability", lambda problem: capability)
    for operation in OPERATIONS:
        space = BACKEND.search_space(_problem("cpu"), operation)
        assert space[0] == default_config(8, "float16", capability)
        assert len(set(space)) == len(space) > 1
        assert BACKEND.estimate(_problem("cpu"), operation, space[1]).reason is None


def test_nothing_reads_the_device() -> None:
    """Meta tensors have no data: whatever read them, or waited for them, would raise."""
    spec = moc.RoutingSpec(
        chunks=moc.Chunks(size=8), top_k=2, anchors=("chunk",), dropout=moc.RouteDropout(off=0.5, into=1.0)
    )
    plan = moc.plan(spec, tokens=40)
    from sparsemoc.backends.planning.geometry import geometry
    from sparsemoc.backends.triton.lengths import ends_of

    host = geometry(plan, True)
    lengths = torch.empty((3, 1), dtype=torch.int32, device="meta")
    keys = type(host.keys)(**{name: torch.from_numpy(getattr(host.keys, name)).to("meta") for name in vars(host.keys)})
    ends = ends_of(host, keys, lengths)
    assert (ends.stops.shape, ends.ends.shape) == ((3, 5), (3, 1))
