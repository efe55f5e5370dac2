"""Every variant of the backward kernels that ships, as data to compile."""

from __future__ import annotations

from itertools import product
from typing import Any

from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.forward import shape_constants
from sparsemoc.backends.triton.kernels.delta import row_constants
from sparsemoc.backends.triton.kernels.grads import grads, join_segments
from sparsemoc.backends.triton.kernels.query_grads import anchor_query_grads, join_query_grads, routed_query_grads
from sparsemoc.backends.triton.launch_backward import DEFAULT_STAGES, DEFAULT_WARPS, KEY_TILES
from sparsemoc.backends.triton.variants import Variant

_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
_OWN = ("q", "k", "v", "out", "d_out", "dk", "dv", "target")
_TABLES = (
    "entries", "ptr", "tile_ptr", "stops", "ends", "split_ptr", "items", "tiles", "selected", "chunk_lo",
    "run_of_row", "anchor_ptr", "anchor_lo", "anchor_hi", *KEY_TILES,
)  # fmt: skip
_SUMS = (
    "lse", "d_lse", "shift", "delta", "dk_parts", "dv_parts", "dq_parts", "sums_of_parts", "anchor_parts",
    "routed_parts",
)  # fmt: skip
_FACTORS = ("scale", "lift", "dk_factor", "dv_factor", "factor")
#: What Triton makes of arrays whose last axis is dense.
_DENSE = {f"stride_{letter}d": 1 for letter in ("q", "k", "v", "o", "r", "dk", "dv", "")}


def kernels(config: TritonConfig, head_dim: int, v_head_dim: int, dtype: str) -> list[Variant]:
    """Return the variants of the backward kernels for one config, head_dim and dtype name."""
    shape, own = shape_constants(1, head_dim, v_head_dim, "ieee"), f"*{_TYPES[dtype]}"
    fixed = (config.grad_query_warps, config.grad_query_stages)
    rows, keys = {"BLOCK_M": config.grad_query_rows}, {"BLOCK_N": config.grad_query_keys}
    found = [
        _variant(row_constants, shape | {"BLOCK_M": config.grad_rows, "HAS_D_LSE": given}, own)
        for given in (False, True)
    ]
    found += [_variant(join_query_grads, shape | rows, own, {"dq": own, "parts": "*i32"}, fixed[0])]
    for flags in _flags("PADDED"):
        found.append(_variant(anchor_query_grads, shape | rows | keys | flags, own, {}, *fixed))
    for flags in _flags("SPLIT"):
        found.append(_variant(routed_query_grads, shape | rows | keys | flags, own, {}, *fixed))
    tile = {"BLOCK_M": config.grad_rows, "BLOCK_N": config.grad_keys}
    for flags in _flags("PADDED", "PARTIAL", "SPLIT", "ADD_DQ"):
        if flags["ADD_DQ"] and not config.grad_atomic:
            continue
        sums = {"dq": "*fp32"}
        found.append(_variant(grads, shape | tile | flags, own, sums, config.grad_warps, config.grad_stages))
    for width, block in sorted({(shape["HEAD_DIM"], shape["BLOCK_D"]), (shape["V_HEAD_DIM"], shape["BLOCK_DV"])}):
        found.append(_variant(join_segments, tile | {"WIDTH": width, "BLOCK": block}, own))
    return found


def _flags(*names: str) -> list[dict[str, bool]]:
    return [dict(zip(names, values, strict=True)) for values in product((False, True), repeat=len(names))]


def _variant(
    kernel: Any,
    constants: dict[str, Any],
    own: str,
    others: dict[str, str] | None = None,
    warps: int = DEFAULT_WARPS,
    stages: int = DEFAULT_STAGES,
) -> Variant:
    """Name a variant by its flags, keep the constants that the kernel has, and give each argument its type."""
    constants = {name: value for name, value in (constants | _DENSE).items() if name in kernel.arg_names}
    types = dict.fromkeys(_OWN, own) | dict.fromkeys(_TABLES, "*i32") | dict.fromkeys(_SUMS, "*fp32")
    types |= dict.fromkeys(_FACTORS, "fp32") | (others or {}) | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    flags = [name.lower() for name, value in constants.items() if value is True]
    return Variant(" ".join([kernel.fn.__name__, *flags]), kernel, signature, constants, warps, stages)
