"""Schedule: the routing over training steps, declared once: coarse chunks first, finer ones later."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from sparsemoc.spec import checks
from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.errors import SpecError, describe, did_you_mean
from sparsemoc.spec.routing import RouteDropout, RoutingSpec

#: What a stage says of a value that it leaves as the base has it.
KEEP = "keep"

#: The chunk sizes of the paper's multi-shot training, and its number of routes.
PAPER_CHUNK_SIZES = (10_240, 5_120, 2_560, 1_280)
PAPER_TOP_K = 5


@dataclass(frozen=True)
class Stage:
    """What differs from the base spec from a step on, until the next stage. "keep" leaves a value as the base has it.

    Args:
        step: first training step of the stage.
        chunk_size: most tokens to a chunk; None makes one chunk of each segment.
        top_k: routed chunks per query; one number, or one per query head.
        dropout: RouteDropout, or None for none. It acts only in calls with `training=True`.

    Raises:
        SpecError: a value outside these rules.
    """

    step: int
    chunk_size: int | str | None = KEEP
    top_k: int | tuple[int, ...] | str = KEEP
    dropout: RouteDropout | str | None = KEEP

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", checks.whole(self.step, "Stage: step", least=0))
        if self.chunk_size is not None and self.chunk_size != KEEP:
            hint = did_you_mean(self.chunk_size, (KEEP,)).strip() or "Use None for one chunk per segment."
            object.__setattr__(
                self, "chunk_size", checks.whole(self.chunk_size, "Stage: chunk_size", least=1, hint=hint)
            )
        if self.top_k != KEEP:
            try:
                object.__setattr__(self, "top_k", RoutingSpec(top_k=self.top_k).top_k)  # type: ignore[arg-type]
            except SpecError as error:
                raise SpecError(f"Stage: {error}{did_you_mean(self.top_k, (KEEP,))}") from None
        if self.dropout is not None and self.dropout != KEEP and not isinstance(self.dropout, RouteDropout):
            raise SpecError(
                f'Stage: dropout must be a RouteDropout, None or "{KEEP}", got {describe(self.dropout)}.'
                f"{did_you_mean(self.dropout, (KEEP,)) or ' Hint: RouteDropout(off=0.5, into=1.0).'}"
            )

    def applied(self, base: RoutingSpec) -> RoutingSpec:
        """Return the base spec with the stage's changes.

        Raises:
            SpecError: a chunk size for a base whose chunks are given by their bounds.
        """
        changes: dict[str, Any] = {
            name: getattr(self, name) for name in ("top_k", "dropout") if getattr(self, name) != KEEP
        }
        size: Any = self.chunk_size
        if size != KEEP:
            changes["chunks"] = replace(base.chunks, size=size)
        return replace(base, **changes)


@dataclass(frozen=True)
class Schedule:
    """The routing over training steps: a base spec, and stages that change some of it.

    A stage holds from its first step to that of the next, the last one for ever. It says all that differs from the
    base: what it does not name is the base's, whatever the stage before said. The base's stream may be None, as ever.

    Args:
        base: the routing that the stages change.
        stages: at least one `Stage`, or the table of its arguments, such as {"step": 0, "chunk_size": 10240}; the
            first at step 0, the steps strictly ascending.

    Raises:
        SpecError: no stages, a first stage after step 0, steps that do not ascend, an unknown key in a table (with a
            "did you mean"), a change that does not fit the base.

    Example:
        >>> schedule = Schedule(RoutingSpec(top_k=5), ({"step": 0, "chunk_size": 2560}, {"step": 1000}))
        >>> schedule.spec(999).chunks.size, schedule.spec(1000).chunks.size
        (2560, 256)
    """

    base: RoutingSpec
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.base, RoutingSpec):
            raise SpecError(
                f"Schedule: base must be a RoutingSpec, got {describe(self.base)}. Hint: RoutingSpec(top_k=5)."
            )
        if not checks.is_items(self.stages) or not self.stages:
            raise SpecError(
                f"Schedule: stages must be a non-empty tuple of Stage, got {describe(self.stages)}. "
                "Hint: (Stage(0, chunk_size=10240), Stage(5000, chunk_size=5120))."
            )
        object.__setattr__(self, "stages", tuple(_stage(item, index) for index, item in enumerate(self.stages)))
        if self.stages[0].step != 0:
            raise SpecError(
                f"Schedule: stages[0] must start at step 0, got step {self.stages[0].step}. Hint: Stage(0) is the base."
            )
        for before, after in pairwise(self._starts):
            if after <= before:
                raise SpecError(f"Schedule: the steps of stages must ascend strictly, got {after} after {before}.")
        self.specs  # noqa: B018  made now, so that a stage that does not fit is an error here

    @cached_property
    def specs(self) -> tuple[RoutingSpec, ...]:
        """The spec of each stage. Equal specs are one object: caches and compilers see few distinct ones."""
        known = {self.base: self.base}
        found = []
        for index, stage in enumerate(self.stages):
            try:
                spec = stage.applied(self.base)
            except SpecError as error:
                raise SpecError(f"Schedule: stages[{index}] must fit the base: {error}") from error
            found.append(known.setdefault(spec, spec))
        return tuple(found)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(stage.step for stage in self.stages)

    def spec(self, step: int) -> RoutingSpec:
        """Return the routing at a training step; the same object throughout a stage.

        Raises:
            SpecError: a step below 0.
        """
        return self.specs[self._index(step)]

    def stage(self, step: int) -> Stage:
        """Return the stage that a training step lies in.

        Raises:
            SpecError: a step below 0.
        """
        return self.stages[self._index(step)]

    def _index(self, step: int) -> int:
        return bisect_right(self._starts, checks.whole(step, "Schedule: step", least=0)) - 1

    @classmethod
    def halving(cls, base: RoutingSpec, *, first: int, boundaries: tuple[int, ...]) -> Schedule:
        """Return the schedule whose chunk size starts at `first` and halves at each boundary; the rest is the base's.

        Args:
            base: the routing at whose place smaller and larger chunks come.
            first: chunk size at step 0.
            boundaries: the steps at which it halves, ascending.

        Raises:
            SpecError: a `first` that does not halve that often to a whole number.
        """
        first = checks.whole(first, "Schedule.halving: first", least=1)
        if not checks.is_items(boundaries):
            raise SpecError(
                f"Schedule.halving: boundaries must be a tuple of steps, got {describe(boundaries)}. "
                "Hint: boundaries=(5000, 10000, 15000)."
            )
        if first % 2 ** len(boundaries):
            raise SpecError(
                f"Schedule.halving: first must halve {len(boundaries)} times, once for each boundary, got {first}. "
                f"Hint: a multiple of {2 ** len(boundaries)}."
            )
        return cls(base, tuple(Stage(step, first // 2**turn) for turn, step in enumerate((0, *boundaries))))

    @classmethod
    def paper(
        cls, base: RoutingSpec | None = None, *, boundaries: tuple[int, int, int] = (5_000, 10_000, 15_000)
    ) -> Schedule:
        """Return the paper's multi-shot schedule: chunks of 10240, 5120, 2560, then 1280 tokens, always with k = 5.

        The paper trains 20,000 steps and does not say when it switches: the default is four equal parts.

        Args:
            base: the routing to change; by default the paper's, `anchors=("text", "shot")` and `causal="chunk"`, its
                stream left to the call. The paper's route dropout, whose rates are not published, would stand here.
            boundaries: the three steps at which the chunk size halves.

        Raises:
            SpecError: not three ascending steps above 0.

        Source: arXiv 2508.21058, appendix F.
        """
        if not checks.is_items(boundaries) or len(boundaries) != len(PAPER_CHUNK_SIZES) - 1:
            raise SpecError(
                f"Schedule.paper: boundaries must be three steps, got {describe(boundaries)}. "
                "Hint: Schedule.halving takes any number of them."
            )
        if base is None:
            base = RoutingSpec(
                chunks=Chunks(PAPER_CHUNK_SIZES[-1]), top_k=PAPER_TOP_K, anchors=("text", "shot"), causal="chunk"
            )
        starts = (0, *boundaries)
        sizes = zip(starts, PAPER_CHUNK_SIZES, strict=True)
        return cls(base, tuple(Stage(step, chunk_size=size, top_k=PAPER_TOP_K) for step, size in sizes))

    def to_json(self) -> str:
        """Return the schedule as JSON text: `version: 1`, the base and the stages, every field, defaults too."""
        from sparsemoc.training import schedule_json  # here, since it builds schedules

        return schedule_json.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Schedule:
        """Return the schedule that `to_json` wrote, exactly, or one written by hand: what is left out is kept.

        Args:
            text: JSON, as text or as UTF-8 bytes.

        Raises:
            SpecError: not JSON, an unknown key (with a "did you mean"), another version, a value outside the rules.
        """
        from sparsemoc.training import schedule_json  # here, since it builds schedules

        return schedule_json.from_json(text)

    def __str__(self) -> str:
        """Return a table of the stages, with the values that hold in each."""
        rows = [("from step", "chunk size", "top_k", "dropout (training=True only)")]
        for stage, spec in zip(self.stages, self.specs, strict=True):
            size = "segment" if spec.chunks.size is None else str(spec.chunks.size)
            rows.append((str(stage.step), size, str(spec.top_k), _dropout_text(spec.dropout)))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        numbers = [[cell.rjust(width) for cell, width in zip(row, widths, strict=False)] for row in rows]
        return "\n".join("  ".join((*cells, row[3])) for cells, row in zip(numbers, rows, strict=True))


def _dropout_text(dropout: RouteDropout | None) -> str:
    if dropout is None:
        return "none"
    return f"off {dropout.off:g}, into {dropout.into:g}, into_max {dropout.into_max}"


def _stage(item: object, index: int) -> Stage:
    if isinstance(item, Stage):
        return item
    if isinstance(item, Mapping):
        from sparsemoc.training import schedule_json  # here, since it builds stages

        try:
            return schedule_json.stage_of(item, f"stages[{index}]")
        except SpecError as error:
            raise SpecError(f"Schedule: {error}") from error
    raise SpecError(
        f"Schedule: stages must hold Stage values, got {describe(item)}. Hint: Stage(5000, chunk_size=5120)."
    )
