"""The two ways from JAX to the host: which is taken, and what happens where one does not work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import sparsemoc as moc

if TYPE_CHECKING:
    from tests.frameworks.conftest import Traced

jax = pytest.importorskip("jax", reason="JAX arrays need JAX")

from sparsemoc.frameworks import jax_abi, jax_bridge, jax_host  # noqa: E402  # they import JAX


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library as it was before the first call."""
    jax_bridge.way()
    monkeypatch.setattr(jax_bridge._Way, "found", None)
    monkeypatch.delenv(jax_bridge.VARIABLE, raising=False)


def broken(*given: Any) -> None:
    raise RuntimeError("another interface")


def wrong(text: str, inputs: Any, outputs: Any) -> None:
    for output in outputs:
        output[...] = 1


@pytest.mark.usefixtures("undecided")
def test_ffi_is_taken_where_it_works() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jax_bridge.way() == "ffi"


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("way", ["ffi", "pure_callback"])
def test_the_variable_asks(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jax_bridge.VARIABLE, way)
    assert jax_bridge.way() == way


@pytest.mark.usefixtures("undecided")
def test_the_variable_holds_another_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jax_bridge.VARIABLE, "fii")
    with pytest.raises(moc.SpecError) as raised:
        jax_bridge.way()
    assert str(raised.value) == (
        'environment variable SPARSEMOC_JAX_BRIDGE must be "ffi" or "pure_callback", got \'fii\' (str). '
        'Did you mean "ffi"?'
    )


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(("replaced", "reason"), [(broken, "another interface"), (wrong, "it gives wrong results")])
def test_where_ffi_does_not_work(
    traced: Traced, monkeypatch: pytest.MonkeyPatch, replaced: Any, reason: str, backend: str
) -> None:
    monkeypatch.setattr(jax_host, "fill", replaced)
    monkeypatch.setattr(jax_bridge, "TARGET", f"sparsemoc_trial_{reason.replace(' ', '_')}_{backend}")
    monkeypatch.setattr(jax_bridge._Way, "handler", None)
    with pytest.warns(
        RuntimeWarning, match=rf"(?s)the FFI target does not work with JAX .*{reason}.*jax.pure_callback"
    ):
        assert jax_bridge.way() == "pure_callback"
    kept = jax_bridge._Way.handler  # XLA may call it as long as the process lives
    monkeypatch.undo()
    KEPT.append(kept)
    monkeypatch.setattr(jax_bridge._Way, "found", "pure_callback")
    q, k, v, *_ = traced.numpy()
    found = moc.attention(*traced.given((q, k, v)), traced.SPEC, backend=backend)
    traced.same(found, moc.attention(q, k, v, traced.SPEC, backend=backend))


KEPT: list[Any] = []


@pytest.mark.usefixtures("undecided")
def test_asked_for_ffi_which_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jax_bridge.VARIABLE, "ffi")
    monkeypatch.setattr(jax_bridge, "_why_no_ffi", lambda: "no such thing")
    with pytest.raises(RuntimeError, match=r"JAX .*: no such thing. Hint: SPARSEMOC_JAX_BRIDGE=pure_callback\."):
        jax_bridge.way()


@pytest.mark.usefixtures("undecided")
def test_the_trial_is_made_once_and_anywhere(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call may stand inside any trace, or in several threads at once."""
    trials = []
    why = jax_bridge._why_no_ffi

    def counted() -> str | None:
        trials.append(1)
        return why()

    monkeypatch.setattr(jax_bridge, "_why_no_ffi", counted)
    q, k, v, *_ = traced.given(traced.numpy())
    grad = jax.jit(jax.grad(lambda q: moc.attention(q, k, v, traced.SPEC, backend="reference").sum()))
    threads = [threading.Thread(target=grad, args=(q,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trials == [1]


def test_inputs_of_many_pieces(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback gets its inputs in pieces, and puts them together."""
    monkeypatch.setattr(jax_bridge._Way, "found", "pure_callback")
    monkeypatch.setattr(jax_bridge, "PIECE", 1000)
    q, k, v, *_ = traced.numpy("bfloat16")
    found = jax.jit(lambda q, k, v: moc.attention(q, k, v, traced.SPEC, key_lengths=traced.LENGTHS))(
        *traced.given((q, k, v))
    )
    traced.same(found, moc.attention(q, k, v, traced.SPEC, key_lengths=traced.LENGTHS))


def test_the_handler_takes_nothing_but_one_text() -> None:
    ran: list[str] = []
    handler = jax_abi.handler(lambda text, inputs, outputs: ran.append(text))
    KEPT.append(handler)
    jax.ffi.register_ffi_target("sparsemoc_strict", jax_abi.capsule(handler), platform="cpu", api_version=1)
    call = jax.ffi.ffi_call("sparsemoc_strict", jax.ShapeDtypeStruct((), np.float32))
    for attributes in ({}, {"call": np.int64(3)}, {"call": "a", "other": "b"}):
        with pytest.raises(jax.errors.JaxRuntimeError, match="a call must come with one text, got"):
            jax.block_until_ready(call(**attributes))
    jax.block_until_ready(call(call="é" * 3000))
    assert ran == ["é" * 3000]


def test_calls_have_equal_texts_if_they_are_equal(traced: Traced) -> None:
    q, k, v, *_ = traced.given(traced.numpy())

    def program(q: Any, **options: Any) -> str:
        run = jax.jit(lambda q: moc.attention(q, k, v, traced.SPEC, **options))
        return str(run.lower(q).as_text())

    assert program(q, scale=0.5) == program(2 * q, scale=0.5)
    assert program(q, scale=0.5) != program(q, scale=0.25)
    assert program(q, backend="reference") != program(q, backend="numba")


KEPT_PROGRAM = """
import sys, jax, numpy as np, sparsemoc as moc
from sparsemoc.jax import host_bridge

host_bridge()  # its trial compiles programs too
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
x = np.random.default_rng(0).standard_normal((1, 32, 2, 8), np.float32)
given = jax.block_until_ready(jax.numpy.asarray(x))
for size in sys.argv[2:]:  # in another order than before: the program must name its call, not count it
    spec = moc.RoutingSpec(chunks=moc.Chunks(size=int(size)), top_k=1, anchors=("chunk",))
    run = jax.jit(lambda x: moc.attention(x, x, x, spec, backend="reference"))
    hits.clear()
    found = np.asarray(run(given))
    np.testing.assert_array_equal(found, moc.attention(x, x, x, spec, backend="reference"))
    print(size, len(hits))
"""


def test_a_program_kept_on_disk_means_the_same_in_the_next_process(tmp_path: Path) -> None:
    def run(*sizes: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", KEPT_PROGRAM, str(tmp_path), *sizes],
            capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("4", "8") == "4 0\n8 0\n"
    assert run("8", "16", "4") == "8 1\n16 0\n4 1\n"
