// The online softmax of a warp's rows over tiles of keys, and the loop over the tiles.
//
// Logits are kept as products with q; `scale`, log2(e) included and never negative, is applied inside the exponential,
// where it costs nothing. The running maximum `top` is in scaled units, base 2.
//
// A tile with pairs that do not count multiplies the values of all its keys with weights, 0 among them, and 0 * NaN is NaN.
// There, values that are not finite are taken out of shared memory, and added key by key to the rows that see them: what
// they do to a sum depends on no weight.
#pragma once

#include "fragments.cuh"

// What a tile of keys may hold: only pairs that count; keys that are nobody's, loaded as 0; pairs that do not count.
constexpr int EVERY = 0, KEYS_END = 1, PAIRS = 2;

// Keys start ... stop - 1, no more than fit into a tile, none where start = stop; `range` is the caller's number of where
// they come from.
struct KeyTile {
    int start, stop, mask, range;
};
// Bytes of shared memory for what the warps of a block tell each other of the work ahead.
constexpr int NOTES = 128;

// The shape of a block's work: WARPS warps of 16 * ROW_TILES rows each against KEYS keys at a time.
template <class T_, int WARPS_, int ROW_TILES_, int KEYS_, int HEAD_, int VALUE_, int PIECES_>
struct Shape {
    using T = T_;
    using Product = typename ProductFor<T, PIECES_>::Type;
    static constexpr int WARPS = WARPS_, ROW_TILES = ROW_TILES_, KEYS = KEYS_, HEAD = HEAD_, VALUE = VALUE_;
    static constexpr int OWN_ROWS = 16 * ROW_TILES, ROWS = WARPS * OWN_ROWS;
    static constexpr int KEY_COLUMNS = KEYS / 8, VALUE_COLUMNS = VALUE / 8;
    // Queries come in here and results leave from here.
    using QueryTile = Tile<T, ROWS, (HEAD > VALUE ? HEAD : VALUE)>;
    using KeysTile = Tile<T, KEYS, HEAD>;
    using ValuesTile = Tile<T, KEYS, VALUE>;
    static_assert(KEYS % 16 == 0 && KEYS <= 128, "the pairs of a row and a thread are bits of one word");
};

// Sums of the rows of a thread: rows 16 m + g and 16 m + g + 8 of its warp are [m][0] and [m][1].
template <class S>
struct Softmax {
    float sums[S::ROW_TILES][S::VALUE_COLUMNS][4];  // of weights times values, relative to `top`
    float top[S::ROW_TILES][2];                     // largest scaled logit so far, -infinity for none
    float total[S::ROW_TILES][2];                   // of the weights of this thread's keys

    DEVICE void start() {
        clear(sums);
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                top[m][h] = -infinity();
                total[m][h] = 0.0f;
            }
    }

    // Turn logits into weights and shrink what was summed under a smaller maximum. Bit 2 n + e of seen[m][h] says whether
    // the pair with key 8 n + 2 t + e counts; read where MASKED.
    template <bool MASKED>
    DEVICE void weigh(float (&logits)[S::ROW_TILES][S::KEY_COLUMNS][4], const u32 (&seen)[S::ROW_TILES][2], float scale) {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float largest = -infinity();
#pragma unroll
                for (int n = 0; n < S::KEY_COLUMNS; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (!MASKED || (seen[m][h] >> (2 * n + e) & 1)) largest = larger(largest, logits[m][n][2 * h + e]);
                largest = larger(largest, shuffle_xor(largest, 1));
                largest = larger(largest, shuffle_xor(largest, 2));
                const float next = larger(top[m][h], largest * scale);
                // A row without keys, or with NaN alone, has no maximum: any finite number does.
                const float base = next == -infinity() ? 0.0f : next;
                const float shrink = exp2_fast(top[m][h] - base);
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < S::KEY_COLUMNS; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float weight = exp2_fast(logits[m][n][2 * h + e] * scale - base);
                        // A logit that does not count may be larger, or NaN.
                        if (MASKED && !(seen[m][h] >> (2 * n + e) & 1)) weight = 0.0f;
                        logits[m][n][2 * h + e] = weight;
                        sum += weight;
                    }
                total[m][h] = total[m][h] * shrink + sum;
                top[m][h] = next;
#pragma unroll
                for (int n = 0; n < S::VALUE_COLUMNS; ++n) {
                    sums[m][n][2 * h] *= shrink;
                    sums[m][n][2 * h + 1] *= shrink;
                }
            }
    }

    // Normalise the sums; return the base-2 log of the sum of exponentials, -infinity where a row saw no key.
    DEVICE float finish(int m, int h) {
        float sum = total[m][h];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        const bool empty = sum == 0.0f;
        const float factor = 1.0f / (empty ? 1.0f : sum);
#pragma unroll
        for (int n = 0; n < S::VALUE_COLUMNS; ++n) {
            sums[m][n][2 * h] *= factor;
            sums[m][n][2 * h + 1] *= factor;
        }
        // NaN logits alone leave no maximum: the sum, NaN, says it all.
        const float base = top[m][h] == -infinity() ? 0.0f : top[m][h];
        return empty ? -infinity() : base + log2_of(sum);
    }
};

// The pairs of this thread in a tile: seen(m, h, key) says whether row (m, h) sees the tile's key number `key`.
template <class S, class Seen>
DEVICE void mark_pairs(u32 (&bits)[S::ROW_TILES][2], const KeyTile& tile, Seen seen) {
    const int t = lane_index() % 4, count = tile.stop - tile.start;
#pragma unroll
    for (int m = 0; m < S::ROW_TILES; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            bits[m][h] = 0;
            for (int place = 0; place < 2 * S::KEY_COLUMNS; ++place) {
                const int key = place / 2 * 8 + 2 * t + place % 2;
                if (key < count && (tile.mask != PAIRS || seen(tile, m, h, tile.start + key))) bits[m][h] |= 1u << place;
            }
        }
}

// Take values that are not finite out of a tile of which some pairs do not count. All threads of the block call it, when
// the tile is there; it is there again, finite, when they return.
template <class S, class Seen>
DEVICE void set_apart(Softmax<S>& state, const typename S::ValuesTile& values, const KeyTile& tile, Seen seen) {
    using Number = Element<typename S::T>;
    bool here = false;
    for (int place = thread_index(); place < S::KEYS * S::VALUE; place += THREADS)
        here |= !finite(Number::value(*values.at(place / S::VALUE, place % S::VALUE)));
    if (!sync_block_any(here)) return;
    const int t = lane_index() % 4, count = tile.stop - tile.start;
    for (int key = 0; key < count; ++key) {
#pragma unroll
        for (int m = 0; m < S::ROW_TILES; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (!seen(tile, m, h, tile.start + key)) continue;
#pragma unroll
                for (int n = 0; n < S::VALUE_COLUMNS; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float value = Number::value(*values.at(key, 8 * n + 2 * t + e));
                        if (!finite(value)) state.sums[m][n][2 * h + e] += value;
                    }
            }
    }
    sync_block();
    for (int place = thread_index(); place < S::KEYS * S::VALUE; place += THREADS) {
        typename S::T* value = values.at(place / S::VALUE, place % S::VALUE);
        if (!finite(Number::value(*value))) *value = Number::from(0.0f);
    }
    sync_block();
}

// Take a tile of keys whose logits are known and whose values are there into the softmax.
template <class S, class Seen>
DEVICE void take_in(Softmax<S>& state, float (&logits)[S::ROW_TILES][S::KEY_COLUMNS][4],
                    const typename S::ValuesTile& values, const KeyTile& tile, Seen seen, float scale) {
    u32 bits[S::ROW_TILES][2];
    if (tile.mask == EVERY) {
        state.template weigh<false>(logits, bits, scale);
    } else {
        mark_pairs<S>(bits, tile, seen);
        state.template weigh<true>(logits, bits, scale);
        if (tile.mask == PAIRS) set_apart<S>(state, values, tile, seen);
    }
    multiply_weights<typename S::Product>(state.sums, logits, values);
}

// Attend a block's rows, whose queries are on their way into shared memory, to every tile of keys that `next(tile)` gives
// before it returns false. Only the first warp asks, all of it, and tells the others by `upcoming`, in shared memory.
//
// The keys of a tile arrive while the one before is weighed, its values while its logits are computed. All copies that the
// caller has issued are waited for. On return no copy is under way, but warps may still read the tiles.
template <class S, class Next, class Seen>
DEVICE void attend(Softmax<S>& state, const typename S::QueryTile& queries, const typename S::KeysTile& keys,
                   const typename S::ValuesTile& values, const Rows<typename S::T>& k, const Rows<typename S::T>& v,
                   float scale, KeyTile* upcoming, Next next, Seen seen) {
    const int warp = warp_index(), own = warp * S::OWN_ROWS;
    const auto ask = [&]() {
        if (warp != 0) return;
        KeyTile found{0, 0, EVERY, 0};
        next(found);
        if (lane_index() == 0) *upcoming = found;
    };
    const auto start_copy = [&](const auto& target, const Rows<typename S::T>& from, const KeyTile& of) {
        load_rows(target, from, [&](int r) { return of.start + r < of.stop ? of.start + r : -1; });
        commit_copies();
    };
    ask();
    sync_block();
    KeyTile tile = *upcoming;
    if (tile.start < tile.stop) start_copy(keys, k, tile);
    while (tile.start < tile.stop) {
        wait_copies<0>();
        sync_block();  // the keys are there, and nobody reads the values before, or `upcoming`
        start_copy(values, v, tile);
        ask();
        float logits[S::ROW_TILES][S::KEY_COLUMNS][4];
        clear(logits);
        multiply_rows<typename S::Product, S::HEAD>(logits, queries, own, keys);
        wait_copies<0>();
        sync_block();  // the values are there, and nobody reads the keys
        const KeyTile now = tile;
        tile = *upcoming;
        if (tile.start < tile.stop) start_copy(keys, k, tile);
        take_in<S>(state, logits, values, now, seen, scale);
    }
    wait_copies<0>();
}
