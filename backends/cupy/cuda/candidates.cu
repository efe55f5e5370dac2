// Padding and candidates by run of queries: what a call's lengths make of the tables of a plan.
//
// Constants: THREADS, a multiple of 32; SHARED_BYTES = 0.
#include "machine.cuh"

// Where the valid tokens of segments and of chunks end. Grid (ceil(max(segments, chunks) / THREADS), 1, batch or 1).
//
// key_lengths: int32 (batch or 1, lengths), contiguous; segment_entry: int32 (segments,), where each segment is.
// segment_lo, segment_tokens: int32 (segments,), first position and tokens; lengths clamp to [0, tokens].
// chunk_lo, chunk_hi, chunk_segment: int32 (chunks,).
// ends: int32 (batch or 1, segments); stops: int32 (batch or 1, chunks), its first position where a chunk has none.
KERNEL(find_ends)(const int* key_lengths, const int* segment_entry, const int* segment_lo, const int* segment_tokens,
                  const int* chunk_lo, const int* chunk_hi, const int* chunk_segment, int* ends, int* stops,
                  int lengths, int segments, int chunks) {
    const int place = block_x() * THREADS + thread_index();
    const i64 batch = block_z();
    const auto end_of = [&](int segment) {
        const int length = key_lengths[batch * lengths + segment_entry[segment]];
        return segment_lo[segment] + smaller(larger(length, 0), segment_tokens[segment]);
    };
    if (place < segments) ends[batch * segments + place] = end_of(place);
    if (place < chunks) {
        const int end = end_of(chunk_segment[place]);
        stops[batch * chunks + place] = smaller(larger(end, chunk_lo[place]), chunk_hi[place]);
    }
}

// The candidates of every run, token windows apart. Grid (runs, ceil(words / (THREADS / 32)), batch or 1); a warp makes
// one word, a lane one bit of it.
//
// The valid keys of chunk c are chunk_lo[c] ... stops[b, c] - 1. The run's anchors are disjoint, ascending ranges: one
// that holds the first key still left moves it to the range's end. The chunk stays where a key is left.
//
// anchor_ptr, anchor_lo, anchor_hi, allowed: see `geometry.Runs`.
// near_first: int32 (runs,), first chunk that the run's token windows reach, of `near` ones (0: no windows).
// bits: int32 (batch or 1, runs, words), `allowed` without the chunks that are covered whole.
// first, last: int32 (batch or 1, runs, near), first and last key left of chunk near_first[run] + n.
KERNEL(find_candidates)(const int* chunk_lo, const int* stops, const int* anchor_ptr, const int* anchor_lo,
                        const int* anchor_hi, const int* allowed, const int* near_first, int* bits, int* first,
                        int* last, i64 stride_stops, int chunks, int words, int near) {
    const int run = block_x(), word = block_y() * (THREADS / 32) + warp_index();
    const i64 batch = block_z(), list = batch * grid_x() + run;
    if (word >= words) return;
    const int chunk = word * 32 + lane_index();
    const bool real = chunk < chunks;
    const int lo = real ? chunk_lo[chunk] : 0, stop = real ? stops[batch * stride_stops + chunk] : 0;
    const int begin = anchor_ptr[run], end = anchor_ptr[run + 1];

    int left = lo;
    for (int entry = begin; entry < end; ++entry) {
        if (anchor_lo[entry] <= left && left < anchor_hi[entry]) left = anchor_hi[entry];
    }
    const u32 shown = warp_ballot(left < stop);
    if (lane_index() == 0) bits[list * words + word] = int(shown) & allowed[i64(run) * words + word];

    const int place = near > 0 ? chunk - near_first[run] : -1;
    if (!real || place < 0 || place >= near) return;
    int right = stop;
    for (int entry = end - 1; entry >= begin; --entry) {
        if (anchor_lo[entry] < right && right <= anchor_hi[entry]) right = anchor_lo[entry];
    }
    first[list * near + place] = left;
    last[list * near + place] = right - 1;
}
