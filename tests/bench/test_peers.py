"""What others compute beside ours: every peer against float64, what is absent, and peers that other packages bring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.testing import oracle
from sparsemoc.tuning.problems import PROBLEMS as NAMED
from sparsemoc.tuning.problems import NamedProblem

torch = pytest.importorskip("torch", reason="most peers are torch's")

ROOT = Path(__file__).resolve().parents[2]
#: Text, shots with captions of unlike length in chunks; and one plain segment.
SHOTS = moc.Stream.multishot(3, 2, 3, 6, caption=3, prompt=5)
PLAIN = moc.Stream((moc.Segment("video", 61),))
#: By magnitude of results around 1.
TOLERANCE = {"float32": 5e-6, "bfloat16": 3e-2, "float16": 5e-3}


def _problem(spec: moc.RoutingSpec, **sizes: Any) -> NamedProblem:
    given: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 16, "v_head_dim": 16}
    return NamedProblem(name="small", about="", spec=spec, **given | sizes)


def _shots(**fields: Any) -> moc.RoutingSpec:
    given: dict[str, Any] = {"stream": SHOTS, "chunks": moc.Chunks(size=7), "top_k": 2, "anchors": ("text", "shot")}
    return moc.RoutingSpec(**given | fields)


def _plain(**fields: Any) -> moc.RoutingSpec:
    given: dict[str, Any] = {"stream": PLAIN, "chunks": moc.Chunks(size=8), "top_k": 2, "anchors": ("chunk",)}
    return moc.RoutingSpec(**{"causal": "token"} | given | fields)


PROBLEMS = {
    "text and shots": _problem(_shots()),
    "new shot": _problem(_shots(causal="chunk"), q_segments=2),
    "top_k per head": _problem(_shots(top_k=(0, 1, 2, 3), anchors=("text", "chunk"))),
    "own chunk, causal": _problem(_plain(), kv_heads=4),
    "causal, fewer queries": _problem(_shots(causal="token"), q_segments=3),
    "no routes": _problem(_shots(top_k=0)),
    "no keys": _problem(_shots(top_k=0, anchors=(), dense_queries=())),
}
ON_CPU = {"torch sdpa math", "torch sdpa flash", "moba var-len"}
MODES = ("route", "attend", "forward", "forward+backward")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """bench is no part of the package: it is imported from the root of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: import_module(f"bench.{name}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads are no help to problems so small, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Asked:
    """A problem with its arrays and routes, and what float64 says."""

    def __init__(self, load: Callable[[str], ModuleType], problem: NamedProblem, dtype: str = "float32") -> None:
        self.problem, self.plan = problem, problem.plan()
        self.inputs = load("inputs").inputs(problem, dtype, "cpu")
        self.layout = moc.route(self.inputs.q, self.inputs.k, problem.spec, backend="reference")
        self._host = load("inputs").host

    def peers(self, source: Callable[..., Any], mode: str) -> dict[str, Any]:
        return {one.name: one for one in source(self.problem, self.plan, self.layout, self.inputs, mode)}

    def check(self, peer: Any, given: Mapping[str, Any]) -> set[str]:
        """Compare every result with a dense masked softmax; return their names."""
        found = {name: self._host(x) for name, x in given.items()}
        mask = self._mask(peer, found.pop("selected", None))
        q, k, v, d_out = (x[0].astype(np.float64) for x in self.inputs.all)
        scale = self.problem.head_dim**-0.5
        out, lse = oracle.attention(q, k, v, mask, scale)
        right = {"out": out, "lse": lse} | dict(
            zip(("dq", "dk", "dv"), oracle.gradients(q, k, v, mask, scale, d_out), strict=True)
        )
        for name, x in found.items():
            tolerance = TOLERANCE[self.inputs.dtype]
            np.testing.assert_allclose(
                x[0].astype(np.float64), right[name], atol=tolerance, rtol=tolerance, err_msg=f"{peer.name}, {name}"
            )
        return set(given)

    def _mask(self, peer: Any, selected: Any) -> Any:
        if peer.computes == "dense":
            mask = np.ones((self.problem.heads, self.problem.queries, self.problem.tokens), bool)
            return np.tril(mask, self.plan.q_start) if self.problem.token_causal else mask
        if selected is None:
            return self.layout.dense_mask()[0]
        # Any order is welcome: a layout has them ascending, -1 last.
        last = np.iinfo(np.int32).max
        ordered = np.sort(np.where(selected < 0, last, selected), axis=-1)
        ordered = np.where(ordered == last, -1, ordered).astype(np.int32)
        if self.inputs.dtype == "float32":
            np.testing.assert_array_equal(ordered, self.layout.selected)
        layout = moc.Layout(ordered, self.plan)
        layout.validate()
        return layout.dense_mask()[0]


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_peer_computes_what_it_says(load: Callable[[str], ModuleType], name: str) -> None:
    asked, ran = Asked(load, PROBLEMS[name]), {}
    for mode in MODES:
        for peer in asked.peers(load("peers").peers, mode).values():
            assert peer.flops > 0 or asked.layout.pairs() == 0
            if peer.name in ON_CPU:
                ran[mode, peer.name] = asked.check(peer, peer.prepare()())
    assert {peer for _, peer in ran} == ON_CPU
    assert ran["route", "moba var-len"] == {"selected"}
    assert ran["attend", "moba var-len"] == {"out", "lse"}
    assert ran["forward", "moba var-len"] == {"out", "lse", "selected"}
    for peer in ON_CPU:
        assert {"dq", "dk", "dv"} <= ran["forward+backward", peer]


@pytest.mark.parametrize("name", NAMED)
def test_the_composition_computes_every_named_problem(load: Callable[[str], ModuleType], name: str) -> None:
    asked = Asked(load, NAMED[name].shrunk(200, 2))
    peer = asked.peers(load("peers").peers, "forward+backward")["moba var-len"]
    assert asked.check(peer, peer.prepare()()) == {"out", "dq", "dk", "dv", "selected"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(load: Callable[[str], ModuleType], dtype: str) -> None:
    asked = Asked(load, PROBLEMS["text and shots"], dtype)
    for mode in ("forward", "forward+backward"):
        found = asked.peers(load("peers").peers, mode)
        for name in ON_CPU:
            assert asked.check(found[name], found[name].prepare()())


def test_results_are_made_anew_by_each_call(load: Callable[[str], ModuleType]) -> None:
    asked = Asked(load, PROBLEMS["text and shots"])
    for name, peer in asked.peers(load("peers").peers, "forward+backward").items():
        if name in ON_CPU:
            call = peer.prepare()
            first, second = call(), call()
            for key, x in first.items():
                assert torch.equal(x, second[key])
                assert x.data_ptr() != second[key].data_ptr()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch's compiler, about itself
def test_flex_attention_under_the_mask(load: Callable[[str], ModuleType]) -> None:
    asked = Asked(load, _problem(_shots(), kv_heads=4))
    peer = asked.peers(load("peers").peers, "attend")["torch flex"]
    assert asked.check(peer, peer.prepare()()) == {"out"}
    for mode in ("route", "forward", "forward+backward"):  # the routes are not in its time
        assert "torch flex" not in asked.peers(load("peers").peers, mode)


def test_a_mask_of_too_many_blocks_is_refused(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load("peers.flex"), "MOST_BLOCKS", 3)
    peer = Asked(load, PROBLEMS["text and shots"]).peers(load("peers").peers, "attend")["torch flex"]
    with pytest.raises(load("peers").Unavailable, match=r"^its mask has 4 blocks over all heads, more than 3$"):
        peer.prepare()


def _reasons(load: Callable[[str], ModuleType], problem: NamedProblem, mode: str) -> dict[str, str]:
    reasons = {}
    for name, peer in Asked(load, problem).peers(load("peers").peers, mode).items():
        try:
            if name != "torch flex":
                peer.prepare()
        except load("peers").Unavailable as error:
            reasons[name] = str(error)
    return reasons


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_needs_a_gpu_says_so(load: Callable[[str], ModuleType]) -> None:
    assert _reasons(load, PROBLEMS["own chunk, causal"], "forward") == dict.fromkeys(
        ["torch sdpa mem-efficient", "torch sdpa cuDNN", "flash-attn 3", "flash-attn 2", "FlashMoBA"],
        "needs a CUDA device",
    )


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (_problem(_shots(unit=moc.Block(4))), "without blocks of queries"),
        (_problem(_shots(dropout=moc.RouteDropout(off=0.5))), "without route dropout"),
        (_problem(_shots(anchors=("text", moc.window(3)))), "a window or another anchor cuts chunks"),
        (_problem(_shots(), v_head_dim=8), "one head_dim, not 16 and 8"),
    ],
)
def test_what_the_composition_cannot_compute_it_refuses(
    load: Callable[[str], ModuleType], problem: NamedProblem, reason: str
) -> None:
    assert reason in _reasons(load, problem, "forward")["moba var-len"]


def test_a_kernel_of_torch_that_refuses_says_why(load: Callable[[str], ModuleType]) -> None:
    reasons = _reasons(load, _problem(_shots(), v_head_dim=8), "forward")
    assert "same last dimension" in reasons["torch sdpa flash"]
    assert "torch sdpa math" not in reasons


def test_what_has_no_room_is_not_started(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(load, PROBLEMS["text and shots"])
    peer = asked.peers(load("peers").peers, "forward")["torch sdpa math"]
    assert peer.bytes >= asked.problem.heads * SHOTS.tokens**2 * 4
    monkeypatch.setattr(load("peers.peer"), "free_bytes", lambda device: 1000)
    with pytest.raises(load("peers").Unavailable, match=r"^needs 0\.0 GB of temporary memory, 0\.0 GB are free$"):
        peer.prepare()


def test_operations(load: Callable[[str], ModuleType]) -> None:
    full, square = 122, 4 * 122**2
    assert PROBLEMS["text and shots"].tokens == full
    for mode, products in (("forward", 2), ("forward+backward", 7)):
        asked = Asked(load, PROBLEMS["text and shots"])
        found = asked.peers(load("peers").peers, mode)
        assert found["torch sdpa flash"].flops == 2 * square * 16 * products
        routing = 2 * 4 * full * asked.plan.chunks * 16
        assert found["moba var-len"].flops == 2 * asked.layout.pairs() * 16 * products + routing
    causal = Asked(load, PROBLEMS["own chunk, causal"]).peers(load("peers").peers, "forward")
    assert causal["torch sdpa flash"].flops == 2 * 4 * (61 * 62 // 2) * 16 * 2
    assert causal["torch sdpa math"].flops == 2 * 4 * 61**2 * 16 * 2
    fewer = Asked(load, PROBLEMS["causal, fewer queries"]).peers(load("peers").peers, "forward")
    queries = range(full - PROBLEMS["causal, fewer queries"].queries, full)
    assert fewer["flash-attn 2"].flops == 2 * 4 * sum(i + 1 for i in queries) * 16 * 2


class Package:
    """Stands for FlashMoBA: its interface, over our own library."""

    def flash_moba_varlen_func(self, q: Any, k: Any, v: Any, *sizes: Any, causal: bool) -> Any:
        starts_q, starts_k, most_q, most_k, chunk, chosen = sizes
        assert starts_q.tolist() == starts_k.tolist() == [0, most_q] == [0, most_k]
        spec = _plain(stream=None, chunks=moc.Chunks(size=chunk), top_k=chosen - 1)
        assert causal
        return moc.attention(q[None], k[None], v[None], spec, backend="numba")[0]


def test_the_interface_of_flash_moba(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    packages = load("peers.packages")
    monkeypatch.setattr(packages, "on_cuda", lambda device: None)
    monkeypatch.setattr(packages, "installed", lambda module, name: Package())
    for mode in ("forward", "forward+backward"):
        spec = _plain(stream=moc.Stream((moc.Segment("video", 64),)))
        asked = Asked(load, _problem(spec))
        peer = asked.peers(load("peers").peers, mode)["FlashMoBA"]
        assert "out" in asked.check(peer, peer.prepare()())
    for problem, reason in (
        (PROBLEMS["text and shots"], "knows MoBA's routing alone"),
        (_problem(_plain(causal="chunk")), "knows MoBA's routing alone"),
        (PROBLEMS["own chunk, causal"], "takes chunks of one length"),
    ):
        assert reason in _reasons(load, problem, "forward")["FlashMoBA"]


PACKAGE = """
import numpy as np

def dense(call):
    q, k, v, _ = (x.astype(np.float64) for x in call.arrays())
    assert call.layout is None and call.mode == "forward"
    def attend():
        k_all, v_all = (np.repeat(x[0], q.shape[2] // x.shape[2], axis=1) for x in (k, v))
        logits = call.scale * np.einsum("ihd,jhd->hij", q[0], k_all)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), v_all)[None]
    return attend
dense.computes = "dense"

def given_routes(call):
    import sparsemoc as moc
    if call.mode != "attend":
        raise NotImplementedError("takes a layout")
    return lambda: {"out": moc.attend(*call.arrays()[:3], call.layout, backend="reference")}

def wrong(call):
    q, _, _, _ = call.tensors()
    return lambda: q * 1.5

def no_call(call):
    return 3

number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "planted_peers.py").write_text(PACKAGE)
    (tmp_path / "planted_broken.py").write_text("import warp_drive")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("planted_peers", "planted_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "planted_peers"


def test_a_peer_by_its_name(load: Callable[[str], ModuleType], package: str) -> None:
    loaded, asked = load("peers.entry").loaded, Asked(load, PROBLEMS["text and shots"])
    (dense,) = asked.peers(loaded(f"{package}:dense"), "forward").values()
    assert (dense.name, dense.computes, dense.flops) == (f"{package}:dense", "dense", 2 * 4 * 122**2 * 16 * 2)
    assert asked.check(dense, dense.prepare()()) == {"out"}
    (given,) = asked.peers(loaded(f"{package}:given_routes"), "attend").values()
    assert (given.computes, asked.check(given, given.prepare()())) == ("moc", {"out"})
    (wrong,) = asked.peers(loaded(f"{package}:wrong"), "attend").values()
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        asked.check(wrong, wrong.prepare()())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("planted_peers:given_routes", "NotImplementedError: takes a layout"),
        ("planted_peers:number", "TypeError: its entry gives 3 (int), which is no function"),
        ("planted_peers:no_call", "TypeError: it must return the function to be timed, got 3 (int)"),
        ("planted_peers:absent", "AttributeError: module 'planted_peers' has no attribute 'absent'"),
        ("planted_broken:kernel", "ModuleNotFoundError: No module named 'warp_drive'"),
        ("planted_nowhere:kernel", "ModuleNotFoundError: No module named 'planted_nowhere'"),
    ],
)
def test_a_broken_peer_says_why_and_breaks_nothing(
    load: Callable[[str], ModuleType], package: str, name: str, reason: str
) -> None:
    asked = Asked(load, PROBLEMS["text and shots"])
    (peer,) = asked.peers(load("peers.entry").loaded(name), "forward").values()
    with pytest.raises(load("peers").Unavailable) as raised:
        peer.prepare()
    assert str(raised.value) == reason


def test_a_name_without_a_function_is_refused(load: Callable[[str], ModuleType]) -> None:
    with pytest.raises(moc.SpecError, match=r'^--peer must be "module:function", got \'module\' \(str\)'):
        load("peers.entry").loaded("module")


class Entry:
    """What importlib.metadata gives for an entry point."""

    def __init__(self, name: str, load: Callable[[], object]) -> None:
        self.name = name
        self.load = load


def test_a_distribution_joins_with_the_same_data(
    load: Callable[[str], ModuleType], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> object:
        raise ImportError("No module named 'warpdrive'")

    def entry_points(*, group: str) -> list[Entry]:
        assert group == "sparsemoc.bench.peers"
        return [Entry("mine", lambda: import_module(package).dense), Entry("broken", broken)]

    monkeypatch.setattr(load("peers.entry"), "entry_points", entry_points)
    asked = Asked(load, PROBLEMS["text and shots"])
    found = asked.peers(load("peers").peers, "forward")
    assert list(found)[-2:] == ["broken", "mine"]
    assert ON_CPU.issubset(found)
    assert asked.check(found["mine"], found["mine"].prepare()()) == {"out"}
    with pytest.raises(load("peers").Unavailable, match=r"^ImportError: No module named 'warpdrive'$"):
        found["broken"].prepare()
