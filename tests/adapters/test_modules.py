"""MoCAttention gives the oracle's answer of its own projections; routes repeat under checkpointing."""

from __future__ import annotations

import doctest
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import oracle

torch = pytest.importorskip("torch", reason="the module is torch's")
moc_torch: Any = import_module("sparsemoc.torch")

# Prompt 3, caption 2, video 12, caption 2, video 12: 31 tokens.
STREAM = moc.Stream.multishot(shots=2, frames=2, height=2, width=3, caption=2, prompt=3)
SPEC = moc.RoutingSpec(stream=STREAM, chunks=moc.Chunks(size=4), top_k=2, anchors=("caption", "chunk"))
DROPOUT = replace(SPEC, top_k=3, dropout=moc.RouteDropout(off=1.0, into=1.0))
DIM, HEADS, KV_HEADS = 24, 4, 2


def make(spec: moc.RoutingSpec = SPEC, **options: Any) -> Any:
    torch.manual_seed(0)
    return moc_torch.MoCAttention(DIM, HEADS, spec, **{"kv_heads": KV_HEADS, "dtype": torch.float64, **options})


def draw(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(shape).standard_normal(shape))


def rotary(q: Any, k: Any) -> tuple[Any, Any]:
    """Pairs of halves turned by an angle of the position, counted from the start of the token axis."""
    angle = torch.arange(q.shape[-3], dtype=torch.float64)[:, None, None] * torch.tensor([1.0, 0.3, 0.1])

    def turn(x: Any) -> Any:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)

    return turn(q), turn(k)


def projected(layer: Any, x: Any, turn: Any = None) -> list[Any]:
    """q, k, v written out."""
    parts = []
    for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        linear, norm = getattr(layer, f"{name}_proj"), getattr(layer, f"{name}_norm", None)
        y = x @ linear.weight.T + (0 if linear.bias is None else linear.bias)
        if layer.qk_norm == "head":
            y = y.reshape(*y.shape[:-1], heads, -1)
        if norm is not None:
            y = y / torch.sqrt((y * y).mean(-1, keepdim=True) + 1e-6) * norm.weight
        parts.append(y.reshape(*x.shape[:-1], heads, -1))
    return parts if turn is None else [*turn(*parts[:2]), parts[2]]


def expected(layer: Any, x: Any, turn: Any = None, spec: moc.RoutingSpec | None = None, **options: Any) -> Any:
    q, k, v = (y.detach().numpy() for y in projected(layer, x, turn))
    answer = oracle.run(q, k, v, layer.spec if spec is None else spec, **options)
    out = torch.from_numpy(answer.out).flatten(-2)
    return layer.out_proj(out).detach(), answer


@pytest.mark.parametrize("qk_norm", [None, "head", "inner"])
@pytest.mark.parametrize("turn", [None, rotary])
def test_the_oracle_of_its_projections(qk_norm: str | None, turn: Any) -> None:
    layer, x = make(qk_norm=qk_norm, rotary=turn), draw(2, 31, DIM)
    if qk_norm is not None:
        torch.nn.init.uniform_(layer.q_norm.weight, 0.5, 2.0)
        torch.nn.init.uniform_(layer.k_norm.weight, 0.5, 2.0)
    out, layout = layer(x, return_layout=True)
    wanted, answer = expected(layer, x, turn)
    torch.testing.assert_close(out, wanted)
    np.testing.assert_array_equal(layout.selected.numpy(), answer.selected)


def test_a_packed_batch() -> None:
    streams = (STREAM, moc.Stream((moc.Segment("video", 9),)))
    layer, x = make(replace(SPEC, stream=None), rotary=rotary), draw(40, DIM)
    out = layer(x, stream=streams)
    torch.testing.assert_close(out, expected(layer, x, rotary, stream=streams)[0])
    apart = layer(x[None, :31], stream=STREAM, rotary=rotary)
    torch.testing.assert_close(out[:31], apart[0])


def test_key_lengths_and_the_rotary_of_a_call() -> None:
    layer, x = make(rotary=lambda q, k: (0 * q, 0 * k)), draw(2, 31, DIM)
    lengths = [[3, 2, 12, 2, 12], [1, 0, 7, 2, 5]]
    out = layer(x, key_lengths=lengths, rotary=rotary)
    torch.testing.assert_close(out, expected(layer, x, rotary, key_lengths=np.array(lengths))[0])
    torch.testing.assert_close(out[1, 2], layer.out_proj.bias.detach())


def test_gradients_are_those_of_the_masked_softmax() -> None:
    layer, x = make(qk_norm="head"), draw(1, 31, DIM).requires_grad_()
    layer(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()} | {"x": x.grad.clone()}
    mask = torch.from_numpy(expected(layer, x)[1].mask[0])[None]
    layer.zero_grad()
    x.grad = None
    q, k, v = (y.transpose(1, 2) for y in projected(layer, x))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    layer.out_proj(dense.transpose(1, 2).flatten(-2)).square().sum().backward()
    for name, grad in found.items():
        torch.testing.assert_close(grad, x.grad if name == "x" else dict(layer.named_parameters())[name].grad)


def test_route_dropout_is_for_training() -> None:
    layer, x = make(DROPOUT), draw(2, 31, DIM)
    torch.testing.assert_close(layer(x, seed=5), expected(layer, x, training=True, seed=5)[0])
    torch.manual_seed(3)
    drawn = layer(x, return_layout=True)[1].selected
    torch.manual_seed(3)
    seed = int(torch.randint(0, 2**62, ()))
    assert torch.equal(drawn, layer(x, seed=torch.tensor(seed), return_layout=True)[1].selected)
    assert not torch.equal(drawn, layer(x, return_layout=True)[1].selected)
    layer.eval()
    state = torch.get_rng_state()
    torch.testing.assert_close(layer(x, seed=5), expected(layer, x)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_checkpointing_repeats_the_routes() -> None:
    layer, x = make(DROPOUT), draw(2, 31, DIM)
    seen: list[Any] = []
    layer.monitor, layer.name = Kept(seen), "blocks.3"

    def grads(run: Any) -> list[Any]:
        layer.zero_grad()
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        return [leaf.grad, *(p.grad.clone() for p in layer.parameters())]

    plain = grads(layer)
    again = grads(lambda leaf: torch.utils.checkpoint.checkpoint(layer, leaf, use_reentrant=False))
    for found, wanted in zip(again, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert [name for name, _ in seen] == ["blocks.3"] * 3  # the recomputation too
    assert all(torch.equal(layout.selected, seen[0][1].selected) for _, layout in seen)


class Kept:
    """A monitor that keeps what it is told."""

    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept

    def record(self, name: str, layout: Any) -> None:
        self.kept.append((name, layout))


def test_a_checkpoint_refuses_to_compute_anew_by_another_spec() -> None:
    layer = moc_torch.MoCAttention(16, 2, moc.RoutingSpec(chunks=moc.Chunks(size=16), top_k=1))
    x = torch.randn(1, 64, 16)
    loss = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum()
    layer.spec = moc.RoutingSpec(chunks=moc.Chunks(size=4), top_k=1)  # routes of the same shape, to chunks beyond
    with pytest.raises(torch.utils.checkpoint.CheckpointError, match="different metadata"):
        loss.backward()


def test_a_schedule_replaces_the_spec() -> None:
    layer, x = make(), draw(1, 31, DIM)
    layer.spec = replace(SPEC, top_k=0)
    torch.testing.assert_close(layer(x), expected(layer, x, spec=replace(SPEC, top_k=0))[0])
    with pytest.raises(
        moc.SpecError, match=r"^MoCAttention: spec must be a RoutingSpec, got None \(NoneType\)\. Hint: "
    ):
        layer.spec = None


def test_autocast_brings_all_to_one_dtype() -> None:
    layer, x = make(qk_norm="head", rotary=rotary, dtype=torch.float32), draw(1, 31, DIM).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.1)


def test_parameters() -> None:
    layer = make(qk_norm="inner", bias=False, out_bias=True, head_dim=8)
    shapes = {name: tuple(p.shape) for name, p in layer.state_dict().items()}
    assert shapes == {
        "q_proj.weight": (32, DIM),
        "k_proj.weight": (16, DIM),
        "v_proj.weight": (16, DIM),
        "out_proj.weight": (DIM, 32),
        "out_proj.bias": (DIM,),
        "q_norm.weight": (32,),
        "k_norm.weight": (16,),
    }
    assert all(p.dtype is torch.float64 for p in layer.parameters())
    other = make(qk_norm="inner", bias=False, out_bias=True, head_dim=8, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    other.reset_parameters()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    x = draw(1, 31, DIM)
    assert torch.equal(layer(x), other(x))
    assert make(kv_heads=None, bias=False).out_proj.bias is None
    assert make(kv_heads=None).k_proj.weight.shape == (DIM, DIM)


def test_repr_says_what_matters() -> None:
    assert (
        "dim=24, heads=4, kv_heads=2, head_dim=6, qk_norm='head', chunks=Chunks(size=4, align=None, tail='balanced', "
        "bounds=None), top_k=2, anchors=('caption', 'chunk'), causal='none'" in repr(make(qk_norm="head"))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kv_heads": 3},
            "MoCAttention: heads must be a multiple of kv_heads, got 4 and 3. Query head h reads key head",
        ),
        ({"kv_heads": 0}, "MoCAttention: kv_heads must be a whole number >= 1, got 0 (int)."),
        ({"head_dim": 0}, "MoCAttention: head_dim must be a whole number >= 1, got 0 (int)."),
        (
            {"dim": 26},
            "MoCAttention: dim must be a multiple of heads where head_dim is not given, got 26 and 4. Hint: ",
        ),
        ({"heads": True}, "MoCAttention: heads must be a whole number >= 1, got True (bool)."),
        (
            {"qk_norm": "heads"},
            'MoCAttention: qk_norm must be "head" or "inner", got \'heads\' (str). Did you mean "head"?',
        ),
        ({"spec": 3}, "MoCAttention: spec must be a RoutingSpec, got 3 (int). Hint: sparsemoc.load_spec(path)."),
    ],
)
def test_refused_sizes(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"dim": DIM, "heads": HEADS, "spec": SPEC, **options}
    with pytest.raises(moc.SpecError) as error:
        moc_torch.MoCAttention(**given)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("shape", [(DIM,), (1, 31, DIM + 1), (1, 1, 31, DIM)])
def test_refused_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(moc.ShapeError) as error:
        make()(torch.zeros(shape))
    assert str(error.value) == (
        f"MoCAttention: `x` must have shape (batch, tokens, 24), or packed (tokens, 24), got {shape}."
    )


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (lambda q, k: q, "MoCAttention: rotary must return the tensors (q, k), got tensor("),
        (
            lambda q, k: (k, q),
            "MoCAttention: rotary must return (q, k) of shapes ((1, 31, 4, 6), (1, 31, 2, 6)), got ((1,",
        ),
    ],
)
def test_refused_rotary(turn: Any, message: str) -> None:
    with pytest.raises(moc.ShapeError) as error:
        make(rotary=turn)(draw(1, 31, DIM))
    assert str(error.value).startswith(message)


def test_the_example_runs() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(moc_torch.MoCAttention, globs={})
    assert doctest.DocTestRunner().run(test) == (0, 4)
