"""Every variant of the forward kernels that ships, as data to compile."""

from __future__ import annotations

from itertools import product
from typing import Any

from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.forward import merge_constants, shape_constants
from sparsemoc.backends.triton.kernels.anchors import attend_anchors
from sparsemoc.backends.triton.kernels.merge import merge
from sparsemoc.backends.triton.kernels.routed import attend_routed
from sparsemoc.backends.triton.variants import Variant

_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
#: Tables, and what is float32 whatever the dtype of the arrays.
_TABLES = (
    "items", "entries", "tiles", "parts", "stops", "ends", "ptr", "tile_ptr", "chunk_lo", "selected", "run_of_row",
    "run_chunk", "run_base", "anchor_ptr", "anchor_lo", "anchor_hi",
)  # fmt: skip
_LOGS = ("lse", "anchor_lse", "routed_lse")
#: What Triton makes of arrays whose last axis is dense.
_DENSE = {"stride_qd": 1, "stride_kd": 1, "stride_vd": 1}


def kernels(config: TritonConfig, head_dim: int, v_head_dim: int, dtype: str) -> list[Variant]:
    """Return the variants of the forward kernels for one config, head_dim and dtype name."""
    shape = shape_constants(1, head_dim, v_head_dim, "ieee") | _DENSE
    own = f"*{_TYPES[dtype]}"
    partial = "*fp32" if config.merge_float32 else own
    tile = {"BLOCK_M": config.anchor_rows, "BLOCK_N": config.anchor_keys}
    found = [
        _variant(attend_anchors, shape | tile | flags, own, {"out": partial}, config.anchor_warps, config.anchor_stages)
        for flags in _anchor_flags()
    ]
    tile = {"BLOCK_M": config.routed_rows, "BLOCK_N": config.routed_keys}
    for split in (False, True):
        constants = shape | tile | {"SPLIT": split}
        found.append(
            _variant(attend_routed, constants, own, {"out": partial}, config.routed_warps, config.routed_stages)
        )
    constants = merge_constants(v_head_dim, config) | {"stride_od": 1}
    partials = {"anchor_out": partial, "routed_out": partial}
    return [*found, _variant(merge, constants, own, partials, config.merge_warps, config.merge_stages)]


def _anchor_flags() -> list[dict[str, bool]]:
    """Return the flags that `anchor_constants` may give: only units that share routes care for split chunks."""
    found = []
    for padded, causal, (band, union, split) in product(
        (False, True),
        (False, True),
        ((False, False, False), (True, False, False), (False, True, False), (False, True, True), (True, True, True)),
    ):
        found.append({"PADDED": padded, "BAND": band, "CAUSAL": causal, "UNION": union, "SPLIT": split})
    return found


def _variant(
    kernel: Any, constants: dict[str, Any], own: str, others: dict[str, str], warps: int, stages: int
) -> Variant:
    """Name a variant by its flags and give each argument its type; arrays not named otherwise are of type `own`."""
    types = dict.fromkeys(("q", "k", "v", "out"), own) | dict.fromkeys(_TABLES, "*i32") | dict.fromkeys(_LOGS, "*fp32")
    types |= {"scale": "fp32"} | others | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    flags = [name.lower() for name, value in constants.items() if value is True]
    return Variant(" ".join([kernel.fn.__name__, *flags]), kernel, signature, constants, warps, stages)
