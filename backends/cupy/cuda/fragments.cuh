// Operands of matrix products in the registers of a warp, and the products: c (16, 8) += a (16, 16) b (16, 8).
//
// 16-bit numbers go to the tensor cores as they are. A float32 is cut into bfloat16 pieces of 8 bits each: three hold all
// of it, their products are exact, and six products of a depth of 16 give what float32 multiplication gives at the cost of
// three products of tf32, whose two pieces hold 22 bits.
//
// A tile is stored one row of T after the other, padded (tiles.cuh). With g = lane / 4 and t = lane % 4 an accumulator holds
// c[0], c[1]: row g at columns 2t and 2t + 1; c[2], c[3]: row g + 8.
#pragma once

#include "numbers.cuh"
#include "tiles.cuh"

// ---- products of 16-bit numbers ------------------------------------------------------------------------------------------
// The operands of both 16-bit types lie alike; Derived says how pairs are made and multiplied.
template <class T, class Derived>
struct NativeProduct {
    // Steps of depth that are scheduled together: loads of the next go ahead of the products of this one.
    static constexpr int STEPS = 4;
    struct A {
        u32 r[4];
    };
    struct B {
        u32 r[2];
    };

    // a = tile[row ... row + 15][column ... column + 15].
    template <class Rows>
    DEVICE static void load_a(A& a, const Rows& tile, int row, int column) {
        const int lane = lane_index();
        load_matrices(a.r, tile.at(row, column, lane % 16, lane / 16 * 8));
    }

    // b(k, n) = tile[n][k] for the columns n ... n + 7 (first) and n + 8 ... n + 15 (second), depth k ... k + 15.
    template <class Rows>
    DEVICE static void load_b(B& first, B& second, const Rows& tile, int n, int k) {
        const int lane = lane_index();
        u32 r[4];
        load_matrices(r, tile.at(n, k, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
        first = B{{r[0], r[1]}};
        second = B{{r[2], r[3]}};
    }

    // b(k, n) = tile[k][n], likewise.
    template <class Rows>
    DEVICE static void load_b_transposed(B& first, B& second, const Rows& tile, int k, int n) {
        const int lane = lane_index();
        u32 r[4];
        load_matrices_transposed(r, tile.at(k, n, lane % 16, lane / 16 * 8));
        first = B{{r[0], r[1]}};
        second = B{{r[2], r[3]}};
    }

    // The accumulators of two neighbouring column tiles as an operand of depth 16: they lie as one does.
    DEVICE static void a_of(A& a, const float (&even)[4], const float (&odd)[4]) {
        a.r[0] = Derived::pair(even[0], even[1]);
        a.r[1] = Derived::pair(even[2], even[3]);
        a.r[2] = Derived::pair(odd[0], odd[1]);
        a.r[3] = Derived::pair(odd[2], odd[3]);
    }
};

struct HalfProduct : NativeProduct<half_t, HalfProduct> {
    DEVICE static u32 pair(float low, float high) { return half_pair(low, high); }
    DEVICE static void multiply(float (&c)[4], const A& a, const B& b) { multiply_half(c, a.r, b.r); }
};

struct BfloatProduct : NativeProduct<bfloat_t, BfloatProduct> {
    DEVICE static u32 pair(float low, float high) { return bfloat_pair(low, high); }
    DEVICE static void multiply(float (&c)[4], const A& a, const B& b) { multiply_bfloat(c, a.r, b.r); }
};

// ---- products of numbers cut into pieces -----------------------------------------------------------------------------------
// The highest 8 bits of a float32, exact in bfloat16; NaN stays NaN, whichever of its bits make it one.
DEVICE float high_piece(float x) { return x == x ? float_of(bits_of(x) & 0xffff0000u) : x; }
// What a piece leaves, exact; 0 where x is not finite, so that infinity is one piece and not a NaN.
DEVICE float rest_of(float x, float piece) {
    const float rest = x - piece;
    return rest == rest ? rest : 0.0f;
}

// Two numbers cut into PIECES bfloat16 numbers each: pieces[i] holds the i-th of both. The last one is rounded.
template <int PIECES>
DEVICE void cut_pair(u32 (&pieces)[PIECES], float low, float high) {
#pragma unroll
    for (int i = 0; i < PIECES - 1; ++i) {
        const float low_piece = high_piece(low), high_of_high = high_piece(high);
        pieces[i] = (bits_of(low_piece) >> 16) | (bits_of(high_of_high) & 0xffff0000u);
        low = rest_of(low, low_piece);
        high = rest_of(high, high_of_high);
    }
    pieces[PIECES - 1] = bfloat_pair(low, high);
}

// Products of a in PIECES_A and b in PIECES_B pieces; terms below 2^-24 of the largest are left out.
template <int PIECES_A, int PIECES_B>
struct SplitProduct {
    static constexpr int STEPS = 1;  // there is work enough in one
    struct A {
        u32 r[PIECES_A][4];
    };
    struct B {
        u32 r[PIECES_B][2];
    };

    template <class Rows>
    DEVICE static void load_a(A& a, const Rows& tile, int row, int column) {
        const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const auto* from = tile.at(row + i % 2 * 8, column + i / 2 * 8, g, 2 * t);
            put(a.r, i, value_of(from[0]), value_of(from[1]));
        }
    }

    template <class Rows>
    DEVICE static void load_b(B& first, B& second, const Rows& tile, int n, int k) {
        const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const auto* from = tile.at(n, k + i * 8, g, 2 * t);
            put(first.r, i, value_of(from[0]), value_of(from[1]));
            from = tile.at(n + 8, k + i * 8, g, 2 * t);
            put(second.r, i, value_of(from[0]), value_of(from[1]));
        }
    }

    template <class Rows>
    DEVICE static void load_b_transposed(B& first, B& second, const Rows& tile, int k, int n) {
        const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const auto* one = tile.at(k + i * 8, n, 2 * t, g);
            const auto* next = tile.at(k + i * 8 + 1, n, 2 * t, g);
            put(first.r, i, value_of(one[0]), value_of(next[0]));
            put(second.r, i, value_of(one[8]), value_of(next[8]));
        }
    }

    DEVICE static void a_of(A& a, const float (&even)[4], const float (&odd)[4]) {
        put(a.r, 0, even[0], even[1]);
        put(a.r, 1, even[2], even[3]);
        put(a.r, 2, odd[0], odd[1]);
        put(a.r, 3, odd[2], odd[3]);
    }

    // The small terms first and apart. They may be infinity times a piece that is 0 where the largest term, which alone
    // says what an infinite product is, is not finite: then they do not count.
    DEVICE static void multiply(float (&c)[4], const A& a, const B& b) {
        constexpr int LAST = PIECES_A + PIECES_B - 2;
        float small[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int order = LAST < 2 ? LAST : 2; order > 0; --order) {
#pragma unroll
            for (int i = PIECES_A - 1; i >= 0; --i) {
                if (order - i >= 0 && order - i < PIECES_B) multiply_bfloat(small, a.r[i], b.r[order - i]);
            }
        }
        multiply_bfloat(c, a.r[0], b.r[0]);
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i] += finite(small[i]) ? small[i] : 0.0f;
    }

   private:
    template <class T>
    DEVICE static float value_of(T x) {
        return Element<T>::value(x);
    }
    template <int PIECES, int COUNT>
    DEVICE static void put(u32 (&r)[PIECES][COUNT], int place, float low, float high) {
        u32 pieces[PIECES];
        cut_pair(pieces, low, high);
#pragma unroll
        for (int i = 0; i < PIECES; ++i) r[i][place] = pieces[i];
    }
};

// A product whose operands are made of pieces, of COLUMNS columns at a time: the compiler would make more of them ahead
// than there are registers beside the sums.
template <class Product, int COLUMNS>
struct Paced : Product {
    using typename Product::B;

    template <class Rows>
    DEVICE static void load_b(B& first, B& second, const Rows& tile, int n, int k) {
        if (n % COLUMNS == 0) sync_warp();
        Product::load_b(first, second, tile, n, k);
    }
    template <class Rows>
    DEVICE static void load_b_transposed(B& first, B& second, const Rows& tile, int k, int n) {
        if (n % COLUMNS == 0) sync_warp();
        Product::load_b_transposed(first, second, tile, k, n);
    }
};

// ---- which product an element type takes ---------------------------------------------------------------------------------
// PIECES: 3 for products of float32 as float32 has them, 2 for those that 16 bits suffice for ("tf32" holds 11).
template <class T, int PIECES = 3>
struct ProductFor;
template <int PIECES>
struct ProductFor<half_t, PIECES> {
    using Type = HalfProduct;
};
template <int PIECES>
struct ProductFor<bfloat_t, PIECES> {
    using Type = BfloatProduct;
};
template <int PIECES>
struct ProductFor<float, PIECES> {
    using Type = SplitProduct<PIECES, PIECES>;
};

// ---- the products of whole tiles -------------------------------------------------------------------------------------------
// c[m][n] += a b^T for the 16 * ROW_TILES rows of `a` from `row` on and all COLUMNS / 8 column tiles: `b` is stored with
// one row for each column of c. DEPTH is the common width, a multiple of 16.
template <class Product, int DEPTH, int ROW_TILES, int COLUMN_TILES, class TileA, class TileB>
DEVICE void multiply_rows(float (&c)[ROW_TILES][COLUMN_TILES][4], const TileA& a, int row, const TileB& b) {
    static_assert(DEPTH % 16 == 0 && COLUMN_TILES % 2 == 0, "an operand is 16 deep, and two are loaded at a time");
#pragma unroll Product::STEPS
    for (int k = 0; k < DEPTH; k += 16) {
        typename Product::A left[ROW_TILES];
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) Product::load_a(left[m], a, row + 16 * m, k);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n += 2) {
            typename Product::B first, second;
            Product::load_b(first, second, b, 8 * n, k);
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                Product::multiply(c[m][n], left[m], first);
                Product::multiply(c[m][n + 1], left[m], second);
            }
        }
    }
}

// c[m][n] += p b for weights p, themselves accumulators of products, and `b` stored with one row for each column of p.
// Columns of b from `column` on.
template <class Product, int ROW_TILES, int DEPTH_TILES, int COLUMN_TILES, class TileB>
DEVICE void multiply_weights(float (&c)[ROW_TILES][COLUMN_TILES][4], const float (&p)[ROW_TILES][DEPTH_TILES][4],
                             const TileB& b, int column = 0) {
    static_assert(DEPTH_TILES % 2 == 0 && COLUMN_TILES % 2 == 0, "an operand is 16 deep, and two are loaded at a time");
#pragma unroll
    for (int k = 0; k < DEPTH_TILES; k += 2) {
        typename Product::A left[ROW_TILES];
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) Product::a_of(left[m], p[m][k], p[m][k + 1]);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n += 2) {
            typename Product::B first, second;
            Product::load_b_transposed(first, second, b, 8 * k, column + 8 * n);
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                Product::multiply(c[m][n], left[m], first);
                Product::multiply(c[m][n + 1], left[m], second);
            }
        }
    }
}

// Set all accumulators to 0.
template <int ROW_TILES, int COLUMN_TILES>
DEVICE void clear(float (&c)[ROW_TILES][COLUMN_TILES][4]) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) c[m][n][i] = 0.0f;
}
