"""A tiny video of two scenes, made with PyAV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sparsemoc.cli import main


def write_video(path: Path, scenes: int, frames: int = 16, width: int = 96, height: int = 64) -> Path:
    """Write `scenes` scenes of moving stripes, each with colours of its own."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(scenes * frames):
            picture = _picture(index // frames, index % frames, width, height)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def _picture(scene: int, frame: int, width: int, height: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    y, x = np.mgrid[:height, :width]
    stripes = ((x + 2 * frame) // 12 + (y // 16)) % 2
    colours = np.array([[[200, 40, 30], [250, 210, 40]], [[20, 60, 200], [30, 200, 90]]], np.uint8)
    return np.asarray(colours[scene % 2][stripes])


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "two scenes.mp4", scenes=2)


@pytest.fixture
def run() -> RunCommand:
    return RunCommand()


class RunCommand:
    """Calls the command line as a user would."""

    def __call__(self, *arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    def fails(self, *arguments: object) -> str:
        """Check that the call ends with exit code 2 and one line, and return the line."""
        result = self(*arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, result.output
        return lines[0]
