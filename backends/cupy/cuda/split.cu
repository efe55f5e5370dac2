// Centroids cut into bfloat16 pieces, once for all queries: a float32 number is the sum of three pieces of 8 bits each.
//
// Constants: THREADS; HEAD_BLOCK (64, 128 or 256), at least head_dim; SHARED_BYTES = 0.
#include "vectors.cuh"

// Grid (ceil(planes_chunks * HEAD_BLOCK / 8 / THREADS), kv_heads, batch); a thread takes eight columns of a centroid.
//
// centroids: float32 (batch, kv_heads, chunks, head_dim), any strides; aligned: see Rows.
// planes: bfloat16 (batch, kv_heads, 3, planes_chunks, HEAD_BLOCK), contiguous; 0 beyond chunks and head_dim.
KERNEL(split_centroids)(const float* centroids, bfloat_t* planes, i64 stride_cb, i64 stride_ch, i64 stride_cl,
                        i64 stride_cd, int chunks, int planes_chunks, int head_dim, int aligned) {
    constexpr int COLUMNS = HEAD_BLOCK / 8;
    const int place = block_x() * THREADS + thread_index();
    const int chunk = place / COLUMNS, column = place % COLUMNS * 8;
    if (chunk >= planes_chunks) return;
    const float* base = centroids + block_z() * stride_cb + block_y() * stride_ch;
    const Rows<float> means{base, stride_cl, stride_cd, head_dim, aligned != 0};
    float x[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (chunk < chunks) load_eight(x, means, chunk, column);
    Vector pieces[3];
    cut_eight(pieces, x);
    const i64 plane = i64(planes_chunks) * HEAD_BLOCK;
    bfloat_t* out = planes + (i64(block_z()) * grid_y() + block_y()) * 3 * plane + i64(chunk) * HEAD_BLOCK + column;
#pragma unroll
    for (int i = 0; i < 3; ++i) *reinterpret_cast<Vector*>(out + i * plane) = pieces[i];
}
