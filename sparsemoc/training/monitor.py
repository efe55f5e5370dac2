"""Monitor: what each layer and head routes during training, counted without waiting for the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from sparsemoc.spec import checks
from sparsemoc.spec.errors import LayoutError, SpecError, describe
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.plan import Plan, plan
from sparsemoc.training.array_ops import ArrayOps, ops_of
from sparsemoc.training.summary import LayerSummary, Summary
from sparsemoc.training.tables import Tables
from sparsemoc.training.tally import Tally


class Monitor:
    """Collects for each layer and head: density, chunk load, dead chunks, and where routes go from shot to shot.

    `record` adds up on the device that holds the layout and reads nothing; only `summary` and the pictures wait for
    it. What is kept is of size (heads, chunks) and (heads, shots, shots) for each layer and plan, and, of padded
    layouts, their key_lengths until the next summary.

    Args:
        every: steps from one recording to the next, for `due`.

    Raises:
        SpecError: `every` below 1.

    Example:
        Once in a hundred steps::

            if monitor.due(step):
                for name, layout in layouts.items():
                    monitor.record(name, layout)
                logger.log(monitor.summary().to_dict(), step=step)
                monitor.reset()
    """

    def __init__(self, every: int = 100) -> None:
        self.every = checks.whole(every, "Monitor: every", least=1)
        self._tallies: dict[str, dict[tuple[Plan, ArrayOps], Tally]] = {}
        self._tables: dict[tuple[Plan, ArrayOps], Tables] = {}

    def due(self, step: int) -> bool:
        """Return whether a training step is one of those to record: every hundredth by default, step 0 among them."""
        return checks.whole(step, "Monitor.due: step", least=0) % self.every == 0

    def record(self, layer: str, layout: Layout) -> None:
        """Count a layout for a layer; further layouts of the layer add up.

        Nothing is read on the host, so a GPU is not waited for; layouts of other libraries than torch are counted
        there with NumPy. Plans may differ from call to call, as with streams of unlike lengths, or as chunks shrink.

        Args:
            layer: name of the layer.
            layout: what it routed: of any batch, packed or not, padded or not.

        Raises:
            LayoutError: no Layout, or one of another number of heads than the layer had before.
            SpecError: a layer that is no name.
        """
        if not isinstance(layer, str) or not layer:
            raise SpecError(
                f'Monitor.record: layer must be a name, got {describe(layer)}. Hint: record("blocks.0", layout).'
            )
        if not isinstance(layout, Layout):
            raise LayoutError(
                f"Monitor.record: layout must be a Layout, got {describe(layout)}. "
                "Hint: attention(..., return_layout=True) gives one."
            )
        tallies = self._tallies.setdefault(layer, {})
        heads = next((tally.heads for tally in tallies.values()), layout.heads)
        if layout.heads != heads:
            raise LayoutError(
                f"Monitor.record: layout must have the {heads} heads that layer {layer!r} had before, "
                f"got {layout.heads}. Hint: another name, or reset()."
            )
        ops = ops_of(layout.selected)
        for sample_plan, selected, key_lengths in _samples(layout, ops.own(layout.selected)):
            self._tally(tallies, sample_plan, layout.heads, ops).add(selected, key_lengths)

    def _tally(
        self, tallies: dict[tuple[Plan, ArrayOps], Tally], sample_plan: Plan, heads: int, ops: ArrayOps
    ) -> Tally:
        key = (sample_plan, ops)
        if key not in tallies:
            if key not in self._tables:
                self._tables[key] = Tables.of(sample_plan.samples[0], ops)
            tallies[key] = Tally(sample_plan, heads, ops, self._tables[key])
        return tallies[key]

    def summary(self) -> Summary:
        """Return what was recorded since the last reset. Waits for the device."""
        return Summary(
            {
                layer: LayerSummary(tuple(tally.read() for tally in tallies.values()))
                for layer, tallies in self._tallies.items()
            }
        )

    def reset(self) -> None:
        """Forget all that was recorded."""
        self._tallies.clear()
        self._tables.clear()

    def picture(self, layer: str | None = None) -> Any:
        """Return the summary as a matplotlib Figure: shot x shot matrices, and density, load and dead chunks.

        Args:
            layer: the layer whose heads are shown; by default all layers are, each with the mean of its heads.

        Raises:
            UnsupportedError: matplotlib is not installed.
            LayoutError: nothing was recorded.
            SpecError: no layer of that name.
        """
        from sparsemoc.training.monitor_picture import draw  # here, since only pictures need matplotlib

        return draw(self.summary(), layer)

    def save_picture(self, path: str | os.PathLike[str], layer: str | None = None) -> None:
        """Write the picture to a file; its suffix says the format, such as .png or .pdf. See `picture`."""
        self.picture(layer).savefig(path)


def _samples(layout: Layout, selected: Any) -> Iterator[tuple[Plan, Any, Any]]:
    """Yield plan, selection and key_lengths of a batch, or of each packed sample."""
    if not layout.plan.packed:
        yield layout.plan, selected, layout.key_lengths
        return
    first = 0
    for index, stream in enumerate(layout.plan.streams):
        rows, lengths = selected[:, :, first : first + stream.tokens], layout.key_lengths
        if lengths is not None:
            lengths = lengths[index : index + 1, : len(stream.segments)]
        yield plan(layout.plan.spec, stream), rows, lengths
        first += stream.tokens
