"""The token sequence of one sample, cut into segments: what the tokens are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sparsemoc.spec import checks
from sparsemoc.spec.errors import SpecError, describe

#: What gives the length of a segment that is not text, and a hint that reads well for a file too.
_LENGTHS = ("tokens or grid", "tokens=1024, or grid=(16, 30, 47)")


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one kind.

    Args:
        kind: "video", "text", or another word.
        tokens: number of tokens; may be left out where a grid gives it.
        shot: number of the shot the segment belongs to. A segment that is not text and has none is a shot by
            itself; text without one is global.
        grid: (frames, height, width) in latent patches, raster order; not for text.

    Raises:
        SpecError: no tokens, a grid that does not multiply to `tokens`, a grid on text.
    """

    kind: str
    tokens: int = None  # type: ignore[assignment]  # __post_init__ fills it from the grid
    shot: int | None = None
    grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not self.kind:
            raise SpecError(
                f'Segment: kind must be a non-empty word such as "video" or "text", got {describe(self.kind)}.'
            )
        grid = None if self.grid is None else self._checked_grid()
        tokens: object = self.tokens
        if tokens is None:
            if grid is None:
                rule, hint = ("tokens", "tokens=77") if self.kind == "text" else _LENGTHS
                raise SpecError(f'Segment("{self.kind}"): {rule} must be given. Hint: {hint}.')
            tokens = grid[0] * grid[1] * grid[2]
        count = checks.whole(tokens, f'Segment("{self.kind}"): tokens', least=1, hint="Leave an empty segment out.")
        if grid is not None and grid[0] * grid[1] * grid[2] != count:
            raise SpecError(
                f'Segment("{self.kind}"): tokens must equal frames * height * width = '
                f"{grid[0] * grid[1] * grid[2]} of grid {grid}, got {count}. Hint: leave tokens out."
            )
        if self.shot is not None:
            shot = checks.whole(self.shot, f'Segment("{self.kind}"): shot', least=0, hint="Use None for no shot.")
            object.__setattr__(self, "shot", shot)
        object.__setattr__(self, "tokens", count)
        object.__setattr__(self, "grid", grid)

    def _checked_grid(self) -> tuple[int, int, int]:
        name = f'Segment("{self.kind}"): grid'
        if self.kind == "text":
            raise SpecError(f"{name} must be None for text, got {describe(self.grid)}. Text has no frames.")
        grid = self.grid
        if not checks.is_items(grid) or len(grid) != 3:
            raise SpecError(f"{name} must be (frames, height, width), got {describe(grid)}.")
        frames, height, width = (checks.whole(n, name, least=1, hint="It is (frames, height, width).") for n in grid)
        return (frames, height, width)

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame: height * width; a segment without a grid counts as one frame."""
        return self.grid[1] * self.grid[2] if self.grid is not None else self.tokens


@dataclass(frozen=True)
class Stream:
    """The token sequence of one sample: its segments, in order.

    Args:
        segments: at least one `Segment`.

    Raises:
        SpecError: no segments, something that is not a Segment, more than 2**31 - 1 tokens.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        segments = self.segments
        if not checks.is_items(segments) or not segments:
            raise SpecError(
                f"Stream: segments must be a non-empty tuple of Segment, got {describe(segments)}. "
                'Hint: Stream((Segment("video", 1024),)).'
            )
        for segment in segments:
            if not isinstance(segment, Segment):
                raise SpecError(
                    f"Stream: segments must hold Segment values, got {describe(segment)}. "
                    'Hint: Segment("text", 77) or Segment("video", grid=(16, 30, 47)).'
                )
        object.__setattr__(self, "segments", tuple(segments))
        checks.whole(self.tokens, "Stream: the total of tokens", least=1, hint="Hint: pack shorter streams.")
        self.line  # noqa: B018  made now: compilers that read it later cannot run what makes it

    @cached_property
    def line(self) -> str:
        """The stream as one line of JSON, equal for equal streams: what stands for it where only text can."""
        from sparsemoc.spec import serial  # here, since serial builds streams

        return serial.stream_line(self)

    @classmethod
    def multishot(cls, shots: int, frames: int, height: int, width: int, caption: int = 0, prompt: int = 0) -> Stream:
        """Build the prompt, then for each shot its caption and its video. A 0 leaves that segment out.

        Args:
            shots: number of shots.
            frames: latent frames of each shot.
            height: rows of a latent frame.
            width: columns of a latent frame.
            caption: text tokens of each shot's caption.
            prompt: text tokens of the global prompt.

        Raises:
            SpecError: a count below 1 (below 0 for `caption` and `prompt`), or too many tokens.
        """
        shots = checks.whole(shots, "Stream.multishot: shots", least=1)
        frames = checks.whole(frames, "Stream.multishot: frames", least=1)
        height = checks.whole(height, "Stream.multishot: height", least=1)
        width = checks.whole(width, "Stream.multishot: width", least=1)
        caption = checks.whole(caption, "Stream.multishot: caption", least=0)
        prompt = checks.whole(prompt, "Stream.multishot: prompt", least=0)
        segments = [Segment("text", prompt)] if prompt else []
        for shot in range(shots):
            if caption:
                segments.append(Segment("text", caption, shot=shot))
            segments.append(Segment("video", shot=shot, grid=(frames, height, width)))
        return cls(tuple(segments))

    def to_json(self) -> str:
        """Return the stream as JSON text: `version: 1` and every field of every segment, defaults too."""
        from sparsemoc.spec import serial  # here, since serial builds streams

        return serial.stream_to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Stream:
        """Return the stream that `to_json` wrote, exactly.

        Args:
            text: JSON, as text or as UTF-8 bytes.

        Raises:
            SpecError: not JSON, an unknown key (with a "did you mean"), another version, a value outside the rules.
        """
        from sparsemoc.spec import serial  # here, since serial builds streams

        return serial.stream_from_json(text)

    @cached_property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(segment.tokens for segment in self.segments)

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Cumulative token counts: segment s holds the tokens bounds[s] ... bounds[s + 1] - 1."""
        total, bounds = 0, [0]
        for segment in self.segments:
            total += segment.tokens
            bounds.append(total)
        return tuple(bounds)

    @cached_property
    def shots(self) -> tuple[int | None, ...]:
        """For each segment the number of its shot in order of first appearance, None for global text."""
        numbers: dict[object, int] = {}
        found: list[int | None] = []
        for index, segment in enumerate(self.segments):
            if segment.shot is None and segment.kind == "text":
                found.append(None)
                continue
            key = ("given", segment.shot) if segment.shot is not None else ("alone", index)
            found.append(numbers.setdefault(key, len(numbers)))
        return tuple(found)
