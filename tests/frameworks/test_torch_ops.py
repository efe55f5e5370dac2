"""The custom operators: what torch asks of an operator, autocast, and the transforms of torch.func."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import sparsemoc as moc

if TYPE_CHECKING:
    from tests.frameworks.conftest import Small, Telling

torch = pytest.importorskip("torch", reason="tensors need torch")

NAMES = ("pool", "route", "attend", "attend_backward")


def given_to_operators(monkeypatch: pytest.MonkeyPatch, call: Any) -> dict[str, tuple[Any, ...]]:
    """Return the arguments with which a call, and its gradients, come to each operator."""
    from sparsemoc.frameworks import torch_ops

    given: dict[str, tuple[Any, ...]] = {}
    with monkeypatch.context() as patch:
        for name in NAMES:
            operator = getattr(torch_ops, name)
            patch.setattr(torch_ops, name, lambda *args, n=name, o=operator: given.setdefault(n, args) and o(*args))
        call()
    return given


@pytest.mark.parametrize("case", ["plain", "padded", "heads first", "packed", "dropout", "half"])
def test_opcheck(monkeypatch: pytest.MonkeyPatch, small: Small, case: str) -> None:
    """Schema, registration of autograd, fake tensors against real ones (strides too), and compiled graphs."""
    arrays: Any = small.qkv("bfloat16" if case == "half" else "float32")
    spec, options = small.SPEC, dict[str, Any](backend="reference")
    if case == "padded":
        options["key_lengths"] = small.LENGTHS
    if case == "heads first":
        arrays, options["axes"] = small.each(lambda x: x.transpose(1, 2).contiguous(), arrays), "bhsd"
    if case == "packed":
        arrays, options["stream"] = small.each(lambda x: x[0], arrays), (small.STREAM,)
    if case == "dropout":
        spec, options = small.DROPOUT, {**options, "training": True, "seed": 5}
    heads = 1 if case == "heads first" else -2
    arrays = small.each(lambda x: x.narrow(heads, 0, 2), arrays)  # every operator gets as many query heads as key heads

    def call() -> None:
        q, k, v = arrays
        moc.attention_grads(q, k, v, spec, moc.attention(q, k, v, spec, **options), **options)

    given = given_to_operators(monkeypatch, call)
    assert set(given) == set(NAMES)
    for name, args in given.items():
        asks = name != "attend_backward"  # of whose gradients there are none, which is an error of its own
        fresh = [x.detach().requires_grad_(asks and x.is_floating_point()) if torch.is_tensor(x) else x for x in args]
        found = torch.library.opcheck(getattr(torch.ops.sparsemoc, name).default, tuple(fresh))
        assert set(found.values()) == {"SUCCESS"}, name


@pytest.mark.parametrize("dropout", [False, True])
def test_opcheck_of_open_lengths(small: Small, dropout: bool) -> None:
    import json

    from sparsemoc.frameworks import torch_open

    drop = moc.RouteDropout(off=0.5, into=1) if dropout else None
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=6), top_k=12, anchors=("chunk",), dropout=drop)
    q, k, v = small.leaves()
    call = json.dumps({"spec__spec": spec.line, "training": dropout, "backend": "reference"})
    lengths, seed = torch.tensor([[42], [17]]), torch.tensor(3) if dropout else None
    ops = torch.ops.sparsemoc
    results = {"SUCCESS"}
    assert set(torch.library.opcheck(ops.attend_open.default, (q, k, v, lengths, seed, call)).values()) == results
    out, lse, selected = (x.detach() for x in torch_open.attend_open(q, k, v, lengths, seed, call))
    saved = (q.detach(), k.detach(), v.detach(), selected, lengths, out, lse, torch.ones_like(out), None, call)
    assert set(torch.library.opcheck(ops.attend_open_backward.default, saved).values()) == results


def test_routes_and_centroids_are_not_differentiable(backend: str, small: Small) -> None:
    q, k, _ = small.leaves()
    centroids = moc.pool(k, moc.plan(small.SPEC), backend=backend)
    assert not centroids.requires_grad
    assert not moc.route(q, None, small.SPEC, centroids=centroids, backend=backend).selected.requires_grad


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast(backend: str, small: Small, dtype: str) -> None:
    """As torch's own attention: mixed float32 and half go in, half comes out, and gradients in the leaves' dtype."""
    leaves, kind = small.leaves(), getattr(torch, dtype)
    with torch.autocast("cpu", kind):
        out, lse = moc.attention(leaves[0], leaves[1].to(kind), leaves[2], small.SPEC, return_lse=True, backend=backend)
    halves = small.each(lambda x: x.detach().to(kind), leaves)
    expected = moc.attention(*halves, small.SPEC, backend=backend)
    assert (out.dtype, lse.dtype) == (kind, torch.float32)
    assert torch.equal(out, expected)
    out.sum().backward()
    grads = moc.attention_grads(*halves, small.SPEC, torch.ones_like(out), backend=backend)
    assert all(torch.equal(leaf.grad, grad.float()) for leaf, grad in zip(leaves, grads, strict=True))


@pytest.mark.dtype("float64")
def test_autocast_leaves_float64_as_it_is(backend: str, small: Small) -> None:
    arrays = small.qkv("float64")
    with torch.autocast("cpu", torch.bfloat16):
        out = moc.attention(*arrays, small.SPEC, backend=backend)
    assert torch.equal(out, moc.attention(*arrays, small.SPEC, backend=backend))


def test_autocast_of_the_operators_themselves(monkeypatch: pytest.MonkeyPatch, small: Small) -> None:
    arrays = small.qkv("bfloat16")
    given = given_to_operators(monkeypatch, lambda: moc.attention(*arrays, small.SPEC))
    ops = torch.ops.sparsemoc
    out, lse = ops.attend(*given["attend"])
    q, k, v, *rest = given["attend"]
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.attend(q.float(), k.float(), v.float(), *rest)
        centroids = ops.pool(k.float(), *given["pool"][1:])
        selected = ops.route(q.float(), *given["route"][1:])
    assert torch.equal(found[0], out)
    assert torch.equal(found[1], lse)
    assert centroids.dtype is torch.float32
    assert torch.equal(centroids, given["route"][1])
    assert torch.equal(selected, rest[0])


def mapped(small: Small, *dims: int) -> Any:
    """Three problems along an axis at `dims` of q, k and v."""
    shapes = ((3, 2, 42, 4, 8), (3, 2, 42, 2, 8), (3, 2, 42, 2, 5))
    return [small.draw(*shape).movedim(0, dim) for shape, dim in zip(shapes, dims, strict=True)]


def test_vmap_is_a_loop(backend: str, small: Small) -> None:
    arrays = mapped(small, 0, 2, 1)
    lengths = torch.tensor([[4, 3, n, 3, 16] for n in range(6)]).reshape(3, 2, 5)

    def run(q: Any, k: Any, v: Any, lengths: Any) -> Any:
        return moc.attention(q, k, v, small.SPEC, key_lengths=lengths, return_lse=True, backend=backend)

    out, lse = torch.vmap(run, in_dims=(0, 2, 1, 0))(*arrays, lengths)
    for index in range(3):
        q, k, v = (x.select(dim, index) for x, dim in zip(arrays, (0, 2, 1), strict=True))
        expected = run(q, k, v, lengths[index])
        assert torch.equal(out[index], expected[0])
        assert torch.equal(lse[index], expected[1])


def test_vmap_over_one_of_three(backend: str, small: Small) -> None:
    q, k, v = mapped(small, 0, 0, 0)
    out = torch.vmap(lambda k: moc.attention(q[0], k, v[0], small.SPEC, backend=backend))(k)
    for index in range(3):
        assert torch.equal(out[index], moc.attention(q[0], k[index], v[0], small.SPEC, backend=backend))


def test_vmap_of_packed_samples_and_of_layouts(backend: str, small: Small) -> None:
    q, k, v = (x[:, 0] for x in mapped(small, 0, 0, 0))

    def run(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q, k, v, small.FREE, stream=(small.STREAM,), return_layout=True, backend=backend)

    out, layout = torch.vmap(run)(q, k, v)
    for index in range(3):
        expected = run(q[index], k[index], v[index])
        assert torch.equal(out[index], expected[0])
        assert torch.equal(layout.selected[index], expected[1].selected)


def test_vmap_drops_the_routes_that_each_would_drop_alone(backend: str, small: Small) -> None:
    q, k, _ = mapped(small, 0, 0, 0)

    def run(q: Any, k: Any, seed: Any) -> Any:
        return moc.route(q, k, small.DROPOUT, training=True, seed=seed, backend=backend).selected

    seeds = torch.tensor([1, 2, 1])
    found = torch.vmap(run)(q, k, seeds)
    assert all(torch.equal(found[i], run(q[i], k[i], seeds[i])) for i in range(3))
    same = torch.vmap(lambda q, k: run(q, k, 1))(q, k)
    assert torch.equal(same[1], run(q[1], k[1], 1))


def test_the_gradients_of_torch_func(backend: str, small: Small) -> None:
    arrays = mapped(small, 0, 0, 0)

    def loss(q: Any, k: Any, v: Any) -> Any:
        out, lse = moc.attention(q, k, v, small.SPEC, return_lse=True, backend=backend)
        return out.square().sum() + lse.sum()

    found = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*arrays)
    for index in range(3):
        leaves = [x[index].clone().requires_grad_() for x in arrays]
        expected = torch.autograd.grad(loss(*leaves), leaves)
        assert all(torch.equal(grad[index], wanted) for grad, wanted in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, at the first dual tensor
def test_what_torch_func_cannot_have(backend: str, small: Small) -> None:
    q, k, v = small.qkv()

    def run(q: Any) -> Any:
        return moc.attention(q, k, v, small.SPEC, backend=backend)

    with pytest.raises(moc.UnsupportedError, match=r"there is no forward-mode derivative\. Hint: use reverse mode"):
        torch.func.jvp(run, (q,), (q,))
    first = torch.func.grad(lambda q: run(q).sum())
    with pytest.raises(moc.UnsupportedError, match="gradients must be taken once, got a second derivative"):
        torch.func.grad(lambda q: first(q).sum())(q)


def test_selective_checkpointing_keeps_the_attention(telling: Telling, small: Small) -> None:
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    calls: list[str] = []

    def counted(name: str, method: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            calls.append(name)
            return method(*given, **options)

        return call

    for name in ("route", "attend"):
        setattr(telling, name, counted(name, getattr(telling, name)))
    kept = torch.ops.sparsemoc.attend.default

    def policy(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
        return CheckpointPolicy.MUST_SAVE if operator is kept else CheckpointPolicy.PREFER_RECOMPUTE

    def run(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q * 2, k, v, small.SPEC, backend=telling).square()

    leaves = small.leaves()
    contexts = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
    checkpoint(run, *leaves, use_reentrant=False, context_fn=contexts).sum().backward()
    assert calls == ["route", "attend", "route"]  # a recomputation routes, and takes the attention that was kept
    plain = small.each(lambda x: x.detach().clone().requires_grad_(), leaves)
    run(*plain).sum().backward()
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(leaves, plain, strict=True))


def test_a_recomputation_repeats_its_routes(backend: str, small: Small) -> None:
    """A seed from torch's own generator, as layers draw it: checkpoints restore that generator."""
    from torch.utils.checkpoint import checkpoint

    def run(q: Any, k: Any, v: Any) -> Any:
        seed = torch.randint(2**62, ())
        return moc.attention(q, k, v, small.DROPOUT, training=True, seed=seed, backend=backend)

    leaves, d_out = small.leaves(), small.d_out()
    torch.manual_seed(3)
    out = checkpoint(run, *leaves, use_reentrant=False)
    torch.randint(2**62, ())  # others go on drawing
    out.backward(d_out)
    plain = small.each(lambda x: x.detach().clone().requires_grad_(), leaves)
    torch.manual_seed(3)
    run(*plain).backward(d_out)
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(leaves, plain, strict=True))


def test_a_line_tells_all_of_an_execution(small: Small, telling: Telling) -> None:
    from sparsemoc.backends import Options
    from sparsemoc.backends.numba.config import NumbaConfig
    from sparsemoc.frameworks import torch as framework
    from sparsemoc.frameworks.execution import Execution
    from sparsemoc.frameworks.portable import line_of, static_of

    q, k, v = small.qkv()
    moc.attention(q, k, v, small.SPEC, backend=telling)
    problem = telling.given["attend"][0]
    wishes = {"deterministic": True, "backward": True, "options": Options(max_workspace=2**20, checked=True)}
    named = Execution.choose("attention", framework, replace(problem, **wishes), "numba", NumbaConfig(key_tile=128))
    own = Execution(framework, telling, problem, object())
    for run in (named, own):
        found = static_of(line_of(run)).execution(framework, q)
        assert (found.backend, found.problem, found.config) == (run.backend, run.problem, run.config)
    with pytest.raises(moc.UnsupportedError, match="a compiled graph must not outlive the backend or config object"):
        static_of(line_of(own).replace("#", "#other"))
