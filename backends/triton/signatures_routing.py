"""Every variant of the routing kernels that ships, as data to compile."""

from __future__ import annotations

from itertools import product
from typing import Any

from sparsemoc.backends.triton.candidates import WARPS as CANDIDATE_WARPS
from sparsemoc.backends.triton.candidates import WORDS
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.kernels.candidates import candidates_kernel
from sparsemoc.backends.triton.kernels.dropout import drop_kernel
from sparsemoc.backends.triton.kernels.index import count_kernel, place_kernel
from sparsemoc.backends.triton.kernels.pool import pool_kernel
from sparsemoc.backends.triton.kernels.route import route_kernel, split_kernel
from sparsemoc.backends.triton.routing import WARPS
from sparsemoc.backends.triton.routing_tiles import (
    drop_constants,
    index_constants,
    pool_constants,
    route_constants,
    route_warps,
    split_constants,
)
from sparsemoc.backends.triton.variants import Variant

_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
#: What is no int32 table, size or stride.
_OTHERS = {"planes": "*bf16", "centroids": "*fp32"}
_TABLES = (
    "chunk_lo", "stops", "anchor_ptr", "anchor_lo", "anchor_hi", "allowed", "near_first", "bits", "first", "last",
    "selected", "unit_row", "unit_rows", "unit_run", "unit_runs", "unit_position", "unit_sample", "run_lo", "run_hi",
    "run_chunk", "run_base", "run_of_row", "envelope", "top_k", "counts", "starts", "entries",
    "seed", "thresholds",
)  # fmt: skip
#: Widths of `selected` that stand for all: the paper's, and lists that fill a tile's registers.
_SLOTS = (5, 64, 512)


def kernels(config: TritonConfig, head_dim: int, v_head_dim: int, dtype: str) -> list[Variant]:
    """Return the variants of the routing kernels for one config, head_dim and dtype name; v_head_dim plays no part."""
    own = f"*{_TYPES[dtype]}"
    found = [
        _variant(pool_kernel, pool_constants(config, head_dim) | {"stride_kd": 1}, own, WARPS),
        *(
            _variant(candidates_kernel, {"WORDS": WORDS, "WINDOW": window}, own, CANDIDATE_WARPS)
            for window in (False, True)
        ),
    ]
    for slots, blocks, window in product(_SLOTS, (False, True), (False, True)):
        route = route_constants(config, head_dim, dtype, slots, 1, blocks, window)
        found.append(
            _variant(
                route_kernel, route | {"stride_qd": 1}, own, route_warps(config, slots), config.route_stages, slots
            )
        )
        found.append(_variant(drop_kernel, drop_constants(config, slots, blocks, window), own, WARPS, 1, slots))
    split = split_constants(head_dim, route_constants(config, head_dim, dtype, 1, 1, False, False)["CHUNKS"])
    found.append(_variant(split_kernel, split | {"stride_d": 1}, own, WARPS))
    for kernel, slots in product((count_kernel, place_kernel), _SLOTS):
        found.append(_variant(kernel, index_constants(config, slots), own, WARPS, 1, slots))
    return found


def _variant(
    kernel: Any, constants: dict[str, Any], own: str, warps: int, stages: int = 1, slots: int | None = None
) -> Variant:
    tables = dict.fromkeys(_TABLES, "*i32")
    types = {"q": own, "k": own} | _OTHERS | tables | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    flags = [name.lower() for name in ("BLOCKS", "WINDOW") if constants.get(name)]
    name = "-".join([kernel.__name__, *flags, *([f"{slots}slots"] if slots is not None else [])])
    return Variant(name, kernel, signature, constants, warps, stages)
