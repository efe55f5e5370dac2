"""The pictures of the monitor: written, with the values in them, and without touching pyplot."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsemoc as moc
from sparsemoc.training import Monitor

pytest.importorskip("matplotlib", reason="it draws the pictures")

STREAM = moc.Stream.multishot(shots=3, frames=2, height=4, width=5, prompt=4)
SPEC = moc.RoutingSpec(chunks=moc.Chunks(10), top_k=2, anchors=("text", "shot"), causal="chunk")


def monitored(layers: int) -> Monitor:
    monitor, random = Monitor(), np.random.default_rng(0)
    for layer in range(layers):
        q, k = (random.standard_normal((1, STREAM.tokens, 2, 8)) for _ in range(2))
        monitor.record(f"blocks.{layer}.attn", moc.route(q, k, SPEC, stream=STREAM, backend="reference"))
    return monitor


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_tile_for_each_layer_shows_its_matrix_where_routes_are_allowed() -> None:
    monitor = monitored(2)
    figure = monitor.picture()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["layer 0", "layer 1", "", "density", "load entropy", "dead chunks"]
    for layer, axes in enumerate(figure.axes[:2]):
        summary = monitor.summary()[f"blocks.{layer}.attn"]
        shown = axes.images[0].get_array()
        np.testing.assert_array_equal(shown.data, summary.shot_matrix.mean(axis=0))
        np.testing.assert_array_equal(~shown.mask, np.tril(np.ones((3, 3), bool), -1))
        lower = [summary.shot_matrix.mean(axis=0)[cell] for cell in ((1, 0), (2, 0), (2, 1))]
        assert texts(axes) == [f"{100 * share:.0f}" for share in lower]
    means = [summary.load_entropy.mean() for summary in monitor.summary().layers.values()]
    np.testing.assert_array_equal(figure.axes[4].lines[-1].get_ydata(), means)
    assert figure.texts[0].get_text() == "Where each layer routes:  blocks.0.attn … blocks.1.attn"


def test_a_tile_for_each_head_of_one_layer() -> None:
    monitor = monitored(2)
    figure, summary = monitor.picture("blocks.1.attn"), monitor.summary()["blocks.1.attn"]
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["head 0", "head 1"]
    for head in range(2):
        np.testing.assert_array_equal(figure.axes[head].images[0].get_array().data, summary.shot_matrix[head])
    np.testing.assert_array_equal(figure.axes[3].lines[-1].get_ydata(), summary.density)


@pytest.mark.parametrize("layers", [1, 9])
def test_the_file_is_a_picture(layers: int, tmp_path: Path) -> None:
    image = importlib.import_module("matplotlib.image")
    monitored(layers).save_picture(tmp_path / "routes.png")
    pixels = image.imread(tmp_path / "routes.png")
    assert pixels.shape[1] == 1600
    assert 600 < pixels.shape[0] < 1200
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50


def test_streams_without_shots_have_a_picture_too() -> None:
    monitor = Monitor()
    monitor.record("a", moc.Layout(np.full((1, 1, 5, 1), -1, np.int32), moc.plan(SPEC_OF_TEXT)))
    assert not monitor.picture().axes[0].images


SPEC_OF_TEXT = moc.RoutingSpec(stream=moc.Stream((moc.Segment("text", 5),)), top_k=1)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(moc.LayoutError) as nothing:
        Monitor().picture()
    assert str(nothing.value) == (
        "Monitor.picture: something must be recorded first, got nothing. Hint: record(layer, layout)."
    )
    with pytest.raises(moc.SpecError) as unknown:
        monitored(1).picture("blocks.0.atn")
    assert str(unknown.value) == (
        "Monitor.picture: layer must be one that was recorded, got 'blocks.0.atn' (str). "
        'Did you mean "blocks.0.attn"?'
    )


SCRIPT = """
import sys
sys.modules["matplotlib"] = None
sys.modules["torch"] = None
import numpy as np
import sparsemoc as moc
spec = moc.RoutingSpec(top_k=1)
monitor = moc.training.Monitor()
monitor.record("a", moc.Layout(np.full((1, 1, 5, 1), -1, np.int32), moc.plan(spec, tokens=5)))
assert monitor.summary().to_dict()["a/density"] == 1
try:
    monitor.picture()
except moc.UnsupportedError as error:
    assert str(error).startswith("Monitor.picture: matplotlib must be installed to draw, but importing it failed")
    assert str(error).endswith("Hint: pip install matplotlib.")
    loaded = {"jax", "numba", "scipy"} & set(sys.modules)
    assert not loaded, loaded
    raise SystemExit(7)
"""


def test_all_but_the_pictures_needs_numpy_alone() -> None:
    root = Path(moc.__file__).parents[1]  # the package under test
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
