// Eight neighbouring numbers of a row at a time: what a thread loads of arrays that every kernel reads only once.
#pragma once

#include "fragments.cuh"

struct alignas(16) Vector {
    u32 word[4];
};

// The i-th element of a vector as float32.
DEVICE float item_of(const Vector& v, int i, const float*) { return float_of(v.word[i]); }
template <class T>
DEVICE float item_of(const Vector& v, int i, const T*) {
    return Element<T>::value(T{u16(v.word[i / 2] >> (i % 2 * 16))});
}

// Load the columns column ... column + 7 of a row as float32, 0 beyond the width. ALIGNED: from.aligned, known early.
template <bool ALIGNED, class T>
DEVICE void load_eight(float (&x)[8], const Rows<T>& from, int row, int column) {
    const T* source = from.base + i64(row) * from.stride;
    if (ALIGNED) {
        constexpr int ITEMS = 16 / int(sizeof(T));
#pragma unroll
        for (int first = 0; first < 8; first += ITEMS) {
            Vector v = {{0u, 0u, 0u, 0u}};
            if (column + first < from.width) v = *reinterpret_cast<const Vector*>(source + column + first);
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) x[first + i] = item_of(v, i, source);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int place = column + i;
            x[i] = place < from.width ? Element<T>::value(source[i64(place) * from.column_stride]) : 0.0f;
        }
    }
}

// Load eight columns whichever way the rows lie.
template <class T>
DEVICE void load_eight(float (&x)[8], const Rows<T>& from, int row, int column) {
    if (from.aligned) {
        load_eight<true>(x, from, row, column);
    } else {
        load_eight<false>(x, from, row, column);
    }
}

// Cut eight numbers into bfloat16 pieces: pieces[i] holds the i-th of each.
template <int PIECES>
DEVICE void cut_eight(Vector (&pieces)[PIECES], const float (&x)[8]) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        u32 words[PIECES];
        cut_pair(words, x[2 * pair], x[2 * pair + 1]);
#pragma unroll
        for (int i = 0; i < PIECES; ++i) pieces[i].word[pair] = words[i];
    }
}
