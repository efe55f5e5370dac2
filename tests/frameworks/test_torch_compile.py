"""torch.compile: one graph without a break, the bits of eager mode, and nothing compiled anew without need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sparsemoc as moc

if TYPE_CHECKING:
    from tests.frameworks.conftest import Small

torch = pytest.importorskip("torch", reason="tensors need torch")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A compiler that runs graphs as they are through autograd's own tracing, and counts them."""

    def __init__(self) -> None:
        from torch._dynamo.backends.common import aot_autograd

        self.graphs: list[Any] = []
        self._trace = aot_autograd(fw_compiler=self._kept)

    def _kept(self, graph: Any, inputs: Any) -> Any:
        from functorch.compile import make_boxed_func

        self.graphs.append(graph)
        return make_boxed_func(graph.forward)

    def __call__(self, graph: Any, inputs: Any) -> Any:
        return self._trace(graph, inputs)


def same(found: Any, expected: Any) -> None:
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def both_ways(small: Small, run: Any, compiled: Any, arrays: Any) -> None:
    """Check out, lse, routes and gradients of a compiled function against the function."""
    leaves = [x.clone().requires_grad_() for x in arrays]
    plain = [x.clone().requires_grad_() for x in arrays]
    (out, lse, layout), (wanted, wanted_lse, wanted_layout) = compiled(*leaves), run(*plain)
    same((out, lse, layout.selected), (wanted, wanted_lse, wanted_layout.selected))
    assert layout.plan == wanted_layout.plan
    assert layout.density() == wanted_layout.density()
    torch.autograd.backward((out, lse), (torch.ones_like(out), torch.ones_like(lse)))
    torch.autograd.backward((wanted, wanted_lse), (torch.ones_like(out), torch.ones_like(lse)))
    same([x.grad for x in leaves], [x.grad for x in plain])


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(small: Small, dynamic: bool) -> None:
    def run(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(2 * q, k, v, small.SPEC, return_lse=True, return_layout=True)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    arrays = small.qkv()
    both_ways(small, run, compiled, arrays)
    both_ways(small, run, compiled, [torch.cat([x, x[:1]]) for x in arrays])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
def test_every_function_is_one_graph(backend: str, small: Small, dtype: str, axes: str) -> None:
    """Padding, options, a config, a layout that goes in and comes out, packed samples: in text and tensors."""
    count = Counter()
    arrays = small.each(lambda x: x.transpose(1, 2) if axes == "bhsd" else x, small.qkv(dtype))
    d_out = small.d_out(dtype).transpose(1, 2) if axes == "bhsd" else small.d_out(dtype)
    lengths, plan = torch.tensor(small.LENGTHS), moc.plan(small.SPEC)
    options: dict[str, Any] = {"axes": axes, "backend": backend}
    wishes = moc.Options(max_workspace=2**30)

    def run(q: Any, k: Any, v: Any, d_out: Any) -> Any:
        centroids = moc.pool(k, plan, key_lengths=lengths, **options)
        layout = moc.route(q, None, small.SPEC, centroids=centroids, key_lengths=lengths, **options)
        out = moc.attend(q, k, v, layout, options=wishes, **options)
        grads = moc.attention_grads(q, k, v, small.SPEC, d_out, key_lengths=lengths, **options)
        one = moc.attention(q[0], k[0], v[0], small.FREE, stream=(small.STREAM,), deterministic=True, **options)
        return out, *grads, one

    same(torch.compile(run, fullgraph=True, backend=count)(*arrays, d_out), run(*arrays, d_out))
    assert len(count.graphs) == 1


def test_a_config_and_a_layout_from_outside(small: Small) -> None:
    from sparsemoc.backends.numba.config import NumbaConfig

    q, k, v = small.qkv()
    layout = moc.route(q, k, small.SPEC, key_lengths=small.LENGTHS)
    config = NumbaConfig(key_tile=128)

    def run(q: Any, layout: moc.Layout) -> Any:
        return moc.attend(q, k, v, layout, config=config, backend="numba")

    found = torch.compile(run, fullgraph=True, backend=Counter())(q, layout)
    assert torch.equal(found, run(q, layout))


def test_one_tensor_for_all_three(small: Small) -> None:
    def run(x: Any) -> Any:
        return moc.attention(x, x, x, small.SPEC)

    x = small.draw(2, 42, 2, 8).requires_grad_()
    out = torch.compile(run, fullgraph=True, backend=Counter())(x)
    assert torch.equal(out, run(x))
    same(torch.autograd.grad(out.sum(), x), torch.autograd.grad(run(x).sum(), x))


def test_a_new_seed_and_an_equal_spec_compile_nothing(small: Small) -> None:
    count = Counter()

    def run(q: Any, k: Any, v: Any, seed: Any, spec: Any) -> Any:
        return moc.attention(q, k, v, spec, training=True, seed=seed)

    compiled = torch.compile(run, fullgraph=True, backend=count)
    arrays = small.qkv()
    found = []
    for number in (3, 4, 2**63 - 1, -7):
        seed, spec = torch.tensor(number), replace(small.DROPOUT)  # a spec of its own each time
        found.append(compiled(*arrays, seed, spec))
        assert torch.equal(found[-1], run(*arrays, seed, spec))
    assert not torch.equal(found[0], found[1])
    assert len(count.graphs) == 1
    compiled(*arrays, torch.tensor(3), replace(small.DROPOUT, top_k=1))
    assert len(count.graphs) == 2


def test_a_whole_seed_compiles_at_most_twice(small: Small) -> None:
    """The compiler takes a whole number for a constant until it changes, and from then on for a value."""
    count = Counter()

    def run(q: Any, k: Any, v: Any, seed: int) -> Any:
        return moc.attention(q, k, v, small.DROPOUT, training=True, seed=seed)

    compiled = torch.compile(run, fullgraph=True, backend=count)
    arrays = small.qkv()
    for seed in (3, 4, 5, 6):
        assert torch.equal(compiled(*arrays, seed), run(*arrays, seed))
    assert len(count.graphs) == 2


def test_seeds_drawn_in_the_graph(small: Small) -> None:
    count = Counter()

    def run(q: Any, k: Any, v: Any) -> Any:
        seed = torch.randint(2**62, (), device=q.device)
        return moc.route(q, k, small.DROPOUT, training=True, seed=seed).selected

    compiled = torch.compile(run, fullgraph=True, backend=count)
    arrays = small.qkv()
    assert not torch.equal(compiled(*arrays), compiled(*arrays))
    assert len(count.graphs) == 1


LISTS: dict[str, Any] = {
    "list": lambda *valid: [[number] for number in valid],
    "tuple": lambda *valid: tuple((number,) for number in valid),
    "numpy": lambda *valid: np.array(valid, np.int16)[:, None],
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("kind", LISTS)
def test_key_lengths_that_are_no_tensor(small: Small, kind: str, dynamic: bool | None) -> None:
    count = Counter()
    arrays = [small.draw(3, 37, heads, dim) for heads, dim in ((4, 8), (2, 8), (2, 5))]

    def run(q: Any, k: Any, v: Any, lengths: Any) -> Any:
        return moc.attention(q, k, v, OPEN, key_lengths=lengths)

    compiled = torch.compile(run, fullgraph=True, backend=count, dynamic=dynamic)
    for valid in ((37, 30, 21), (9, 12, 20), (36, 13, 22), (5, 1, 0), (37, 2, 23), (11, 7, 40)):
        lengths = LISTS[kind](*valid)
        expected = run(*arrays, torch.tensor(valid)[:, None])  # type: ignore[call-arg]  # four in all
        assert torch.equal(compiled(*arrays, lengths), expected)
    assert len(count.graphs) <= 2


@pytest.mark.parametrize("kind", ["int64", "uint8"])
def test_seeds_that_are_numpys(small: Small, kind: str) -> None:
    count = Counter()
    arrays = small.qkv()

    def run(q: Any, k: Any, v: Any, seed: Any) -> Any:
        return moc.attention(q, k, v, small.DROPOUT, training=True, seed=seed)

    compiled = torch.compile(run, fullgraph=True, backend=count)
    for seed in range(4):
        assert torch.equal(compiled(*arrays, getattr(np, kind)(seed)), run(*arrays, seed))
    assert len(count.graphs) == 1


def test_a_scale_that_is_a_tensor_is_refused(small: Small) -> None:
    q, k, v = small.qkv()
    with pytest.raises(Exception, match=r"scale must be a number under torch\.compile.*scale=float\(value\)"):
        torch.compile(lambda scale: moc.attention(q, k, v, small.SPEC, scale=scale), fullgraph=True)(torch.tensor(0.5))


def test_dynamic_batches_share_a_graph(small: Small) -> None:
    count = Counter()
    scale = 0.25

    def run(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q, k, v, small.SPEC, scale=scale)

    compiled = torch.compile(run, fullgraph=True, backend=count, dynamic=True)
    for batch in (6, 7, 9, 11):  # none of the other sizes, which the compiler would take for the same
        arrays = [x[:1].expand(batch, *x.shape[1:]).contiguous() for x in small.qkv()]
        assert torch.equal(compiled(*arrays), run(*arrays))
    assert len(count.graphs) == 1


OPEN = moc.RoutingSpec(
    chunks=moc.Chunks(size=6), top_k=3, anchors=("chunk",), dropout=moc.RouteDropout(off=0.5, into=1)
)


@pytest.mark.parametrize("axes", ["bshd", "bhsd"])
@pytest.mark.parametrize("training", [False, True])
def test_any_number_of_tokens_shares_a_graph(small: Small, backend: str, axes: str, training: bool) -> None:
    """Without a stream the plan is made when the graph runs: fewer chunks than routes, padding, dropout, gradients."""
    count = Counter()

    def run(q: Any, k: Any, v: Any, lengths: Any, seed: Any) -> Any:
        return moc.attention(
            q, k, v, OPEN, key_lengths=lengths, training=training, seed=seed, axes=axes, backend=backend,
            return_lse=True, options=moc.Options(max_workspace=2**30),
        )  # fmt: skip

    compiled = torch.compile(run, fullgraph=True, backend=count, dynamic=True)
    graphs = []
    for tokens in (37, 12, 64, 21, 50, 90, 33, 70, 11, 26):  # more lengths than the compiler would make graphs
        leaves = []
        for _ in range(2):
            arrays = [small.draw(3, tokens, heads, dim) for heads, dim in ((4, 8), (2, 8), (2, 5))]
            turned = [x.transpose(1, 2).contiguous() if axes == "bhsd" else x for x in arrays]
            leaves.append([x.requires_grad_() for x in turned])
        rest = torch.tensor([[tokens], [tokens // 2], [0]]), torch.tensor(tokens)
        found, expected = compiled(*leaves[0], *rest), run(*leaves[1], *rest)  # type: ignore[call-arg]  # five in all
        same(found, expected)
        for (out, lse), given in zip((found, expected), leaves, strict=True):
            (out.square().sum() + lse.clamp(min=-9).sum()).backward()
            assert all(x.grad is not None for x in given)
        same([x.grad for x in leaves[0]], [x.grad for x in leaves[1]])
        graphs.append(len(count.graphs))
    assert graphs == [2] * 10  # a forward and its backward


def test_an_open_length_under_autocast(small: Small) -> None:
    def run(q: Any, k: Any, v: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return moc.attention(q, k.bfloat16(), v, OPEN)

    compiled = torch.compile(run, fullgraph=True, backend=Counter(), dynamic=True)
    arrays = [small.draw(3, 37, heads, dim) for heads, dim in ((4, 8), (2, 8), (2, 5))]
    assert torch.equal(compiled(*arrays), run(*arrays))


def test_what_an_open_length_cannot_do_without_its_plan(small: Small) -> None:
    count = Counter()

    def run(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(q, k, v, OPEN, return_layout=True)

    compiled = torch.compile(run, fullgraph=True, backend=count, dynamic=True)
    for tokens in (37, 64):
        arrays = [small.draw(3, tokens, heads, dim) for heads, dim in ((4, 8), (2, 8), (2, 5))]
        (out, layout), (wanted, wanted_layout) = compiled(*arrays), run(*arrays)
        same((out, layout.selected), (wanted, wanted_layout.selected))
        assert layout.plan == wanted_layout.plan
    assert len(count.graphs) == 2


def test_checkpoints_in_a_graph(small: Small) -> None:
    from torch.utils.checkpoint import checkpoint

    def attend(q: Any, k: Any, v: Any) -> Any:
        return moc.attention(2 * q, k, v, small.SPEC)

    def run(*arrays: Any) -> Any:
        return checkpoint(attend, *arrays, use_reentrant=False)

    leaves = small.leaves()
    out = torch.compile(run, fullgraph=True, backend=Counter())(*leaves)
    expected = attend(*leaves)
    assert torch.equal(out, expected)
    same(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves))


def test_what_is_wrong_is_said_while_compiling(small: Small) -> None:
    q, k, v = small.qkv()

    def run(q: Any) -> Any:
        return moc.attention(q, k, v, small.SPEC, backend="numba", options=moc.Options(anchors="fast"))

    with pytest.raises(torch._dynamo.exc.Unsupported) as raised:
        torch.compile(run, fullgraph=True, backend=Counter())(q)
    causes: list[BaseException] = []
    cause: BaseException | None = raised.value
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    (ours,) = [cause for cause in causes if isinstance(cause, moc.UnsupportedError)]
    assert str(ours).startswith('attention: backend "numba" has the anchor engines own, not "fast"')


def test_a_backend_object_is_refused(small: Small, telling: Any) -> None:
    q, k, v = small.qkv()
    with pytest.raises(Exception, match=r"backend must be a name under torch\.compile"):
        torch.compile(lambda q: moc.attention(q, k, v, small.SPEC, backend=telling), fullgraph=True)(q)


def test_export_keeps_the_operators(small: Small) -> None:
    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return moc.attention(q, k, v, small.SPEC)

    arrays = small.qkv()
    program = torch.export.export(Model(), arrays)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in called if "sparsemoc" in name] == [
        "sparsemoc.pool.default", "sparsemoc.route.default", "sparsemoc.attend.default",
    ]  # fmt: skip
    assert torch.equal(program.module()(*arrays), Model()(*arrays))


def test_a_layout_is_a_tree(small: Small) -> None:
    from torch.utils import _pytree as pytree

    q, k, _ = small.qkv()
    for lengths in (None, small.LENGTHS):
        layout = moc.route(q, k, small.SPEC, key_lengths=lengths)
        leaves, structure = pytree.tree_flatten(layout)
        assert [x.dtype for x in leaves] == [torch.int32] * (1 if lengths is None else 2)
        again = pytree.tree_unflatten(leaves, structure)
        assert (again.plan, again.selected is layout.selected) == (layout.plan, True)
        assert again.key_lengths is layout.key_lengths
        assert pytree.tree_map(lambda x: x.shape, layout).selected == layout.selected.shape
