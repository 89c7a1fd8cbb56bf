// Mean and variance in one pass. Nothing is subtracted from a large sum, so a channel far from zero keeps its variance.
#pragma once

#include "common/accessors.cuh"

namespace din_kernels::cuda {

struct Moments {
    float rows = 0.0f, mean = 0.0f, square = 0.0f;  // square: sum of squared deviations from the mean

    // Adds a row by Welford's step; part = 1 / (rows + 1), which all columns of a row share.
    __device__ void add(float value, float part) {
        const float delta = value - mean;
        mean += delta * part;
        square += delta * (value - mean);
        rows += 1.0f;
    }
    // Adds the rows of another by the step of Chan, Golub and LeVeque.
    __device__ void join(const Moments& more) {
        if (more.rows == 0.0f) return;
        const float delta = more.mean - mean, part = more.rows / (rows + more.rows);
        square += more.square + delta * delta * rows * part;
        mean += delta * part;
        rows += more.rows;
    }
};

// Joins the moments of all lanes in a fixed order; lane 0 has the result.
__device__ inline Moments warp_join(Moments mine) {
    for (int flip = 16; flip > 0; flip /= 2) {
        const Moments other{__shfl_xor_sync(~0u, mine.rows, flip), __shfl_xor_sync(~0u, mine.mean, flip),
                            __shfl_xor_sync(~0u, mine.square, flip)};
        mine.join(other);
    }
    return mine;
}

}  // namespace din_kernels::cuda
