// Ranges of keys that tiles of rows are anchored to, as planning/query_tiles.py lists them.
#pragma once

#include "softmax.cuh"

// Numbers to an item and to an entry, and the flags of an entry: every row of the tile sees every key of it; only keys
// within reach of the token window count.
constexpr int ITEM = 6, ENTRY = 6;
constexpr int FULL = 1, BANDED = 2;

// What decides which pairs of an item count.
struct Sight {
    const int* entries;
    int q_start;  // position of row 0
    int reach;    // half-width of the token window
    bool causal;

    // Of keys in the range of an entry.
    DEVICE bool in_range(int number, int row, int key) const {
        const int* entry = entries + number * ENTRY;
        const int distance = key - row - q_start;
        return row >= entry[2] && row < entry[3] && !(causal && distance > 0) &&
               !((entry[5] & BANDED) && (distance > reach || -distance > reach));
    }
};

// The tiles of keys of entries, one after another. One thread moves it on, in shared memory: no register holds it while
// tiles are multiplied.
struct EntryTiles {
    const int* entries;
    const int* ends;  // of valid positions by segment, null without padding
    int entry, entry_end;
    int start, stop, mask, range;  // what is left of the range at hand

    // Of KEYS_ keys; without any where none is left.
    template <int KEYS_>
    DEVICE KeyTile next() {
        while (start >= stop) {
            if (entry >= entry_end) return KeyTile{0, 0, EVERY, 0};
            open();
        }
        const int first = start, end = smaller(first + KEYS_, stop);
        start = end;
        return KeyTile{first, end, mask == PAIRS ? PAIRS : end - first == KEYS_ ? EVERY : KEYS_END, range};
    }

    // Go on over positions lo ... hi - 1, which are of no entry: range -1.
    DEVICE void take(int lo, int hi, int what) {
        start = lo;
        stop = hi;
        mask = what;
        range = -1;
    }

   private:
    DEVICE void open() {
        const int* one = entries + entry * ENTRY;
        start = one[0];
        stop = ends == nullptr ? one[1] : smaller(one[1], ends[one[4]]);
        mask = one[5] & FULL ? EVERY : PAIRS;
        range = entry++;
    }
};
