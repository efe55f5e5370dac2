"""Layout: which chunks each query takes, on top of what the plan already says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.checks import whole
from sparsemoc.spec.errors import LayoutError, describe
from sparsemoc.spec.host import dtype_name, host
from sparsemoc.spec.plan import Plan, Sample
from sparsemoc.spec.routing import Block

if TYPE_CHECKING:
    from sparsemoc.spec.report import Report


@dataclass(frozen=True, eq=False)
class ChunkMajor:
    """The transpose of a layout: for each head and chunk, the (query, slot) pairs that chose it, by query.

    Pairs of batch row b, head h and chunk c are entries ptr[b, h, c] ... ptr[b, h, c + 1] - 1 of the flat arrays.
    A query is a row of the query axis; packed, chunks of sample s follow those of the samples before it.

    Attributes:
        ptr: int64 (batch, heads, chunks + 1).
        query, slot: int32 (pairs,), ascending by query within a chunk.
    """

    ptr: NDArray[np.int64]
    query: NDArray[np.int32]
    slot: NDArray[np.int32]

    def selected(self, queries: int, slots: int) -> NDArray[np.int32]:
        """Return the query-major `selected` array again, chunk numbers as in `ptr`."""
        batch, heads, width = self.ptr.shape
        out = np.full((batch, heads, queries, slots), -1, np.int32)
        for b in range(batch):
            for h in range(heads):
                part = slice(self.ptr[b, h, 0], self.ptr[b, h, -1])
                chunk = np.repeat(np.arange(width - 1, dtype=np.int32), np.diff(self.ptr[b, h]))
                out[b, h, self.query[part], self.slot[part]] = chunk
        return out


@dataclass(frozen=True, eq=False)
class Layout:
    """The block-index layout: a token-granular selection of chunks.

    Making one checks structure only, no data: it never waits for a device. `validate()`, masks, counts and reports
    read the data on the host, and give NumPy arrays.

    Attributes:
        selected: int32 (batch, heads, queries, plan.slots): the routed chunks of each query, ascending, -1 beyond
            their count, in dense rows and in padded rows. Packed: batch 1; chunk numbers restart in each sample.
            An array of the library that was routed, NumPy, CuPy, JAX or torch, on its device; and so is key_lengths.
        plan: what it was made for.
        key_lengths: int32 (batch, segments), packed (samples, most segments): valid tokens; None without padding.

    Raises:
        LayoutError: an array of another rank, dtype or shape.
    """

    selected: Any
    plan: Plan
    key_lengths: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.plan, Plan):
            raise LayoutError(f"Layout: plan must be a Plan, got {describe(self.plan)}. Hint: sparsemoc.plan(spec).")
        shape, dtype = _shape_and_dtype(self.selected)
        if len(shape) != 4 or dtype != "int32":
            got = f"{dtype} {shape}" if dtype else describe(self.selected)
            raise LayoutError(f"Layout: selected must be int32 (batch, heads, queries, slots), got {got}.")
        if shape[2:] != (self.plan.q_tokens, self.plan.slots):
            raise LayoutError(
                "Layout: selected must have shape (batch, heads, queries, slots) = "
                f"(batch, heads, {self.plan.q_tokens}, {self.plan.slots}), got {shape}. "
                "queries and slots come from the plan."
            )
        if self.plan.packed and shape[0] != 1:
            raise LayoutError(f"Layout: selected must have batch 1 when packed, got {shape[0]}.")
        top_k = self.plan.spec.top_k
        if not isinstance(top_k, int) and len(top_k) != shape[1]:
            raise LayoutError(
                f"Layout: selected must have {len(top_k)} heads, one for each top_k of the spec, got {shape[1]}."
            )
        if self.key_lengths is not None:
            self._check_key_lengths(len(self.plan.streams) if self.plan.packed else shape[0])

    def _check_key_lengths(self, rows: int) -> None:
        wanted = (rows, self.plan.most_segments)
        shape, dtype = _shape_and_dtype(self.key_lengths)
        if shape != wanted or dtype != "int32":
            names = "(samples, most segments)" if self.plan.packed else "(batch, segments)"
            got = f"{dtype} {shape}" if dtype else describe(self.key_lengths)
            raise LayoutError(f"Layout: key_lengths must be int32 {names} = {wanted}, got {got}.")

    def tree_flatten(self) -> tuple[tuple[Any, Any], Plan]:
        """Return the arrays (selected, key_lengths) and what stays fixed, the plan: a pytree's view of a layout."""
        return (self.selected, self.key_lengths), self.plan

    @classmethod
    def tree_unflatten(cls, plan: Plan, arrays: Sequence[Any]) -> Layout:
        """Return a layout of whatever a library puts in place of the arrays, tracers or their shardings, unchecked."""
        layout = object.__new__(cls)
        for name, value in zip(("selected", "key_lengths", "plan"), (*arrays, plan), strict=True):
            object.__setattr__(layout, name, value)
        return layout

    @property
    def batch(self) -> int:
        """Size of the batch axis; 1 when packed."""
        return int(self.selected.shape[0])

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self.selected.shape[1])

    def on_host(self) -> Layout:
        """Return the layout with NumPy arrays: itself, or a copy of what lies on another device, which waits for it."""
        selected, lengths = host(self.selected), None if self.key_lengths is None else host(self.key_lengths)
        if selected is self.selected and lengths is self.key_lengths:
            return self
        return Layout(selected, self.plan, lengths)

    def samples(self) -> list[Sample]:
        """Return each sample with its place in the arrays and its compiled plan, padding applied. Reads key_lengths."""
        return self.plan.batch(self.batch, None if self.key_lengths is None else host(self.key_lengths))

    def rows(self, sample: Sample) -> Any:
        """Return the part of `selected` that belongs to a sample, (heads, queries, slots)."""
        return self.selected[sample.row, :, sample.q_row : sample.q_row + sample.plan.q_tokens]

    def validate(self) -> None:
        """Read the data and check every rule of a selection.

        Raises:
            LayoutError: a chunk number outside the sample, not strictly ascending, an entry after a -1, a chunk that
                is no candidate of its query, more routes than allowed, members of a block that differ.
        """
        from sparsemoc.spec.validate import validate_sample

        layout = self.on_host()
        for sample in layout.samples():
            validate_sample(layout, sample)

    def dense_mask(self) -> NDArray[np.bool_]:
        """Return the allowed (query, key) pairs as bool (batch, heads, queries, keys). Quadratic: for tests."""
        layout, mask = self.on_host(), np.zeros((self.batch, self.heads, self.plan.q_tokens, self.plan.k_tokens), bool)
        for sample in layout.samples():
            plan, selected = sample.plan, layout.rows(sample)
            keys = slice(sample.k_row, sample.k_row + plan.k_tokens)
            for query in range(plan.q_tokens):
                part = mask[sample.row, :, sample.q_row + query, keys]
                part[:, plan.anchors(plan.q_start + query)] = True
                for head, chunks in enumerate(selected[:, query]):
                    for chunk in chunks[chunks >= 0]:
                        part[head, plan.chunk_bounds[chunk] : plan.chunk_stop[chunk]] = True
        return mask

    def pairs(self) -> int:
        """Return the number of (head, query, key) triples attended to: anchors, dense rows and routes, each once."""
        from sparsemoc.spec.report import pairs

        return pairs(self.on_host())

    def density(self) -> float:
        """Return pairs / (heads * L_q * L_k), the product summed over the samples; 0 where it is 0.

        Padding counts in neither: L_q and L_k are the valid queries and the valid keys of a sample.
        """
        full = 0
        for sample in self.samples():
            plan = sample.plan
            queries = plan.valid_keys[plan.q_start : plan.q_start + plan.q_tokens]
            full += int(queries.sum()) * int(plan.valid_keys.sum())
        return self.pairs() / (full * self.heads) if full else 0.0

    def flops(self, head_dim: int, v_head_dim: int | None = None) -> int:
        """Return the operations of the forward, 2 * pairs * (head_dim + v_head_dim); routing apart."""
        dims = [whole(head_dim, "flops: head_dim", least=1)]
        dims.append(dims[0] if v_head_dim is None else whole(v_head_dim, "flops: v_head_dim", least=1))
        return 2 * self.pairs() * sum(dims)

    def report(self, threshold: float = 0.05) -> Report:
        """Return what was routed where: see `Report`.

        Args:
            threshold: share of a shot's routing queries above which an edge between shots counts, for loop closures.

        Raises:
            LayoutError: a packed layout of unlike streams, whose chunks and shots have nothing in common.
            SpecError: a threshold outside [0, 1].
        """
        from sparsemoc.spec.report import report

        return report(self.on_host(), threshold)

    def run_on(self) -> tuple[NDArray[np.int32], int]:
        """Return `selected` with chunk numbers that run on from packed sample to sample, and the number of chunks."""
        selected, total = np.array(host(self.selected)), 0
        if not self.plan.packed:
            return selected, self.plan.chunks
        for sample in self.samples():
            rows = selected[:, :, sample.q_row : sample.q_row + sample.plan.q_tokens]
            rows[rows >= 0] += total
            total += sample.plan.chunks
        return selected, total

    def chunk_major(self) -> ChunkMajor:
        """Return the transpose: for each head and chunk the (query, slot) pairs that chose it."""
        selected, total = self.run_on()
        batch, heads, _, slots = selected.shape
        order = np.argsort(selected.reshape(batch * heads, -1), axis=1, kind="stable")
        chunk = np.take_along_axis(selected.reshape(batch * heads, -1), order, axis=1)
        kept = chunk >= 0
        ptr = np.zeros((batch * heads, total + 1), np.int64)
        for row in range(batch * heads):
            ptr[row, 1:] = np.cumsum(np.bincount(chunk[row][kept[row]], minlength=total))
        ptr += np.concatenate([[0], np.cumsum(ptr[:-1, -1])])[:, None]
        flat = order[kept]
        slot = max(slots, 1)
        return ChunkMajor(
            ptr.reshape(batch, heads, -1), (flat // slot).astype(np.int32), (flat % slot).astype(np.int32)
        )

    def to_block_mask(self, block_size: int | tuple[int, int] = 128, device: Any = None) -> Any:
        """Return the layout as a FlexAttention BlockMask (needs torch). See `sparsemoc.spec.blockmask`."""
        from sparsemoc.spec.blockmask import to_block_mask

        return to_block_mask(self, block_size, device)

    @classmethod
    def from_block_mask(cls, block_mask: Any, plan: Plan, key_lengths: Any = None) -> Layout:
        """Return the layout whose dense mask is the BlockMask's (needs torch). See `sparsemoc.spec.blockmask`."""
        from sparsemoc.spec.blockmask import from_block_mask

        return from_block_mask(block_mask, plan, key_lengths)

    def __repr__(self) -> str:
        unit = self.plan.spec.unit
        unit_text = f"Block({unit.n})" if isinstance(unit, Block) else unit
        return (
            f"Layout(batch={self.batch}, heads={self.heads}, queries={self.plan.q_tokens}, keys={self.plan.k_tokens}, "
            f"chunks={self.plan.chunks}, slots={self.plan.slots}, unit={unit_text})"
        )


def _shape_and_dtype(array: Any) -> tuple[tuple[int, ...], str]:
    """Return the shape of an array and the name of its dtype; empty for what is no array."""
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        return (), ""
    return tuple(array.shape), dtype_name(array)
