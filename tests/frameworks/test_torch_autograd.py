"""Autograd: out and lse of attention and attend are differentiable, once, in reverse."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import sparsemoc as moc

if TYPE_CHECKING:
    from tests.frameworks.conftest import Small, Telling

torch = pytest.importorskip("torch", reason="tensors need torch")

DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [False, True])
def test_the_gradients_are_those_of_attention_grads(backend: str, small: Small, dtype: str, half: bool) -> None:
    leaves, d_out, d_lse = small.leaves(dtype), small.d_out(dtype), small.d_lse(dtype)
    options: dict[str, Any] = {"key_lengths": small.LENGTHS, "backend": backend}
    if half:
        layout = moc.route(*leaves[:2], small.SPEC, **options)
        assert not layout.selected.requires_grad
        result = moc.attend(*leaves, layout, return_lse=True, backend=backend)
    else:
        result = moc.attention(*leaves, small.SPEC, return_lse=True, **options)
    torch.autograd.backward(result, (d_out, d_lse))
    expected = moc.attention_grads(*leaves, small.SPEC, d_out, d_lse=d_lse, **options)
    for leaf, grad in zip(leaves, expected, strict=True):
        assert not grad.requires_grad
        assert torch.equal(leaf.grad, grad)


def test_heads_first_and_packed(backend: str, small: Small) -> None:
    leaves = small.each(lambda x: x[0].transpose(0, 1).detach().requires_grad_(), small.qkv())
    d_out = small.d_out()[0].transpose(0, 1)
    options: dict[str, Any] = {"axes": "bhsd", "backend": backend}
    out = moc.attention(*leaves, small.SPEC, **options)
    assert out.shape == (4, 42, 5)
    out.backward(d_out)
    for leaf, grad in zip(leaves, moc.attention_grads(*leaves, small.SPEC, d_out, **options), strict=True):
        assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("of", ["out", "lse"])
def test_a_gradient_of_one_result_alone(backend: str, small: Small, of: str) -> None:
    leaves, d_out, d_lse = small.leaves(), small.d_out(), small.d_lse()
    out, lse = moc.attention(*leaves, small.SPEC, return_lse=True, backend=backend)
    (out if of == "out" else lse).backward(d_out if of == "out" else d_lse)
    given = (d_out, None) if of == "out" else (torch.zeros_like(d_out), d_lse)
    expected = moc.attention_grads(*leaves, small.SPEC, given[0], d_lse=given[1], backend=backend)
    for leaf, grad in zip(leaves, expected, strict=True):
        assert torch.equal(leaf.grad, grad)


def test_gradients_through_what_comes_before_and_after(backend: str, small: Small) -> None:
    """An expanded gradient (that of a sum), and inputs that are themselves computed."""
    leaves = small.leaves()
    out = moc.attention(*small.each(lambda x: 2 * x, leaves), small.SPEC, backend=backend)
    out.sum().backward()
    doubled = small.each(lambda x: 2 * x.detach(), leaves)
    expected = moc.attention_grads(*doubled, small.SPEC, torch.ones_like(out), backend=backend)
    for leaf, grad in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * grad)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_the_gradients_that_are_needed(backend: str, small: Small, which: int) -> None:
    arrays, d_out = small.qkv(), small.d_out()
    arrays[which].requires_grad_()
    moc.attention(*arrays, small.SPEC, backend=backend).backward(d_out)
    expected = moc.attention_grads(*arrays, small.SPEC, d_out, backend=backend)
    assert [x.grad is not None for x in arrays] == [number == which for number in range(3)]
    assert torch.equal(arrays[which].grad, expected[which])


def test_one_tensor_for_all_three(backend: str, small: Small) -> None:
    x, d_out = small.draw(2, 42, 2, 8).requires_grad_(), small.draw(2, 42, 2, 8)
    moc.attention(x, x, x, small.SPEC, backend=backend).backward(d_out)
    dq, dk, dv = moc.attention_grads(x, x, x, small.SPEC, d_out, backend=backend)
    torch.testing.assert_close(x.grad, dq + dk + dv)


@pytest.mark.dtype("float64")
def test_gradcheck(backend: str) -> None:
    stream = moc.Stream((moc.Segment("text", 2), moc.Segment("video", 7)))
    spec = moc.RoutingSpec(stream=stream, chunks=moc.Chunks(size=2), top_k=1, anchors=("text", "chunk"))
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 9, heads, dim, dtype=torch.float64, generator=draw).requires_grad_()
        for heads, dim in ((2, 3), (1, 3), (1, 2))
    )
    layout = moc.route(q, k, spec, backend=backend)  # held fast: a step of gradcheck must change no choice

    def both(q: Any, k: Any, v: Any) -> Any:
        return moc.attend(q, k, v, layout, return_lse=True, backend=backend)

    assert torch.autograd.gradcheck(both, (q, k, v))


def test_checkpointing_gives_the_same_bits(backend: str, small: Small) -> None:
    from torch.utils.checkpoint import checkpoint

    def run(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q, k, v, small.SPEC, backend=backend)

    leaves, d_out = small.leaves(), small.d_out()
    checkpoint(run, *leaves, use_reentrant=False).backward(d_out)
    plain = small.each(lambda x: x.detach().clone().requires_grad_(), leaves)
    run(*plain).backward(d_out)
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(leaves, plain, strict=True))


def test_saved_tensors_pass_through_hooks(backend: str, small: Small) -> None:
    """What autograd keeps can be moved elsewhere: the layout's tensors too."""
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        moc.attention(*small.leaves(), small.SPEC, key_lengths=small.LENGTHS, backend=backend)
    assert [x.dtype for x in kept].count(torch.int32) == 2


def test_nothing_is_recorded_where_nothing_is_asked_for(telling: Telling, small: Small) -> None:
    assert moc.attention(*small.qkv(), small.SPEC, backend=telling).grad_fn is None
    assert not telling.given["attend"][0].backward
    with torch.no_grad():
        assert not moc.attention(*small.leaves(), small.SPEC, backend=telling).requires_grad
    assert not telling.given["attend"][0].backward
    moc.route(*small.leaves()[:2], small.SPEC, backend=telling)
    assert not telling.given["route"][0].backward
    assert moc.attention(*small.leaves(), small.SPEC, backend=telling).requires_grad
    assert telling.given["attend"][0].backward


def test_a_backend_without_a_backward_refuses(telling: Telling, small: Small) -> None:
    telling.capabilities = replace(telling.capabilities, backward=False)
    moc.attention(*small.qkv(), small.SPEC, backend=telling)
    with pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(*small.leaves(), small.SPEC, backend=telling)
    assert str(raised.value) == (
        'attention: backend "telling" has no backward (float32 on cpu (torch), heads 4/2, head_dim 8/5, backward). '
        'Hint: backend="auto" chooses one that can, if there is one.'
    )


def test_a_second_derivative_is_an_error(backend: str, small: Small) -> None:
    leaves = small.leaves()
    out = moc.attention(*leaves, small.SPEC, backend=backend)
    grads = torch.autograd.grad(out.sum(), leaves, create_graph=True)  # allowed as long as nobody goes on from here
    assert all(grad.requires_grad for grad in grads)
    with pytest.raises(moc.UnsupportedError) as raised:
        grads[0].sum().backward()
    assert str(raised.value) == (
        "attention: gradients must be taken once, got a second derivative: there is none of the gradients. "
        "Hint: leave out create_graph=True, or detach the first gradients."
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at the first dual tensor
def test_forward_mode_is_an_error(backend: str, small: Small) -> None:
    q, k, v = small.qkv()
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level(), pytest.raises(moc.UnsupportedError) as raised:
        moc.attention(forward_ad.make_dual(q, q), k, v, small.SPEC, backend=backend)
    assert str(raised.value) == (
        "attention: `q` must carry no tangent, got a dual tensor: there is no forward-mode derivative. "
        "Hint: use reverse mode, out.backward()."
    )
