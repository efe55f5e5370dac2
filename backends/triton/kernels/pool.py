"""The mean key of each chunk."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("chunks", "stride_stops"))
def pool_kernel(
    k, chunk_lo, stops, centroids,
    stride_kb, stride_kl, stride_kh, stride_kd, chunks, stride_stops,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Average the valid keys of one chunk: m_c = sum_j k_j / count in float32. Grid (chunks, kv_heads, batch).

    Args:
        k: (batch, tokens, kv_heads, HEAD_DIM), any strides.
        chunk_lo: int32 (chunks,), first key of each chunk; stops: int32 (batch or 1, chunks), end of the valid ones.
        centroids: float32 (batch, kv_heads, chunks, HEAD_DIM), contiguous; 0 where a chunk has no valid key.
        KEYS: keys to a step; they are summed apart and joined at the end.
    """
    chunk, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    lo = tl.load(chunk_lo + chunk)
    stop = tl.load(stops + batch * stride_stops + chunk)
    column = k + batch * stride_kb + head.to(tl.int64) * stride_kh + dims[None, :] * stride_kd
    total = tl.zeros((KEYS, BLOCK_D), tl.float32)
    for start in range(lo, stop, KEYS):
        key = start + tl.arange(0, KEYS)
        inside = (key < stop)[:, None] & (dims < HEAD_DIM)[None, :]
        # Masked loads: what padding holds, NaN too, is never part of a mean.
        total += tl.load(column + key.to(tl.int64)[:, None] * stride_kl, mask=inside, other=0.0).to(tl.float32)
    # Rounded once: a mean that float32 holds exactly must come out exactly, for ties to be ties.
    count = tl.maximum(stop - lo, 1).to(tl.float32)
    mean = tl.div_rn(tl.sum(total, axis=0), tl.full((BLOCK_D,), 1.0, tl.float32) * count)
    out = centroids + ((batch * tl.num_programs(1) + head) * chunks + chunk) * HEAD_DIM
    tl.store(out + dims, mean, mask=dims < HEAD_DIM)
