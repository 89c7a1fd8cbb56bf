// The right side of a product, a weight matrix [in, out], is packed once per call in the order in which lanes read it.
// So weights need no shared memory: a warp reads 256 contiguous bytes per tile and step, from L1 after its first tile.
//
// The columns are cut into tiles of 8, the rows into steps of 4, 8 or 16 (kDepth of the arithmetic). Tiles are
// multiplied in groups of 5, and what is left over in groups of 2 and 1. A matrix of 8 tiles and 2 steps lies in memory
// like this, each box the words of one tile and step:
//
//   group     first (5 tiles)                         second (2)      third (1)
//   step      0                   1                   0       1       0   1
//   tile    | 0 | 1 | 2 | 3 | 4 | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 5 | 6 | 7 | 7 |
//
// All weights of a step of a group lie at constant distances from one address.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/device.cuh"

namespace din_kernels::cuda {

// A warp keeps the sums of at most 5 tiles in registers, so that widths of 40 and 80 leave none idle.
constexpr int kTiles = 5;
template <int kCount>
using Sums = float[kCount][4];

// Tiles of the next group where `left` of them are left.
__host__ __device__ constexpr int64_t next_group(int64_t left) { return left >= kTiles ? kTiles : left >= 2 ? 2 : 1; }

// Calls body(first tile, n) for all groups. Their sizes are constants of the body: then nothing branches on a tile, and
// the loads of a group can all be under way at once.
template <typename Body>
__device__ void for_groups(int tiles, const Body& body) {
    int first = 0;
    for (; first + kTiles <= tiles; first += kTiles) body(first, std::integral_constant<int, kTiles>{});
    for (; first + 2 <= tiles; first += 2) body(first, std::integral_constant<int, 2>{});
    if (first < tiles) body(first, std::integral_constant<int, 1>{});
}

// The order of the boxes in the picture above: place is the number of a box, tile and step say what it holds.
struct PackedOrder {
    int64_t tiles, steps;

    __device__ int64_t place(int64_t tile, int64_t step) const {
        const int64_t first = first_of_group(tile);
        return first * steps + step * next_group(tiles - first) + tile - first;
    }
    __device__ int64_t tile(int64_t place) const {
        const int64_t first = first_of_group(place / steps);
        return first + (place - first * steps) % next_group(tiles - first);
    }
    __device__ int64_t step(int64_t place) const {
        const int64_t first = first_of_group(place / steps);
        return (place - first * steps) / next_group(tiles - first);
    }

 private:
    __device__ int64_t first_of_group(int64_t tile) const {
        const int64_t whole = tile / kTiles * kTiles;
        return tiles - whole >= kTiles ? whole : whole + (tile - whole) / 2 * 2;
    }
};

}  // namespace din_kernels::cuda
