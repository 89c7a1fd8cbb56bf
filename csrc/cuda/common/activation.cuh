// Activations of the unit and their derivatives, on one element.
#pragma once

#include <type_traits>

#include "din_kernels/local_activation.h"
#include "common/ptx.cuh"

namespace din_kernels::cuda {

// In fp32 with the full expf; with kApproximate (bf16 and fp16 storage) by tanh.approx, sigmoid(x) = (1 + tanh(x/2))/2:
// absolute error at most 2^-12, below the 2^-9 of rounding a bf16 value in [0.5, 1) and that of fp16's 2^-12.
template <bool kApproximate>
__device__ float sigmoid(float x) {
    if constexpr (kApproximate) return 0.5f * ptx::tanh_approx(0.5f * x) + 0.5f;
    return 1.0f / (1.0f + expf(-x));
}

template <bool kApproximate>
__device__ float tanh_of(float x) {
    if constexpr (kApproximate) return ptx::tanh_approx(x);
    return tanhf(x);
}

// Of one channel. prelu: slope; dice: alpha, mean, 1 / sqrt(var + eps).
struct ChannelParams {
    float slope_or_alpha, mean, rstd;
};
struct ChannelPair {
    ChannelParams at[2];
};

// body(kind) with the activation as a constant, so that loops over elements do not branch on it.
template <typename Body>
__device__ void with_activation(Activation activation, const Body& body) {
    switch (activation) {
        case Activation::kSigmoid:
            return body(std::integral_constant<Activation, Activation::kSigmoid>{});
        case Activation::kRelu:
            return body(std::integral_constant<Activation, Activation::kRelu>{});
        case Activation::kPrelu:
            return body(std::integral_constant<Activation, Activation::kPrelu>{});
        case Activation::kTanh:
            return body(std::integral_constant<Activation, Activation::kTanh>{});
        case Activation::kDice:
            return body(std::integral_constant<Activation, Activation::kDice>{});
        case Activation::kIdentity:
            return body(std::integral_constant<Activation, Activation::kIdentity>{});
    }
}

template <bool kApproximate>
__device__ float activate(Activation activation, float z, const ChannelParams& c) {
    switch (activation) {
        case Activation::kSigmoid:
            return sigmoid<kApproximate>(z);
        case Activation::kRelu:
            return z > 0.0f ? z : (z == z ? 0.0f : z);  // NaN stays
        case Activation::kPrelu:
            return z > 0.0f ? z : c.slope_or_alpha * z;
        case Activation::kTanh:
            return tanh_of<kApproximate>(z);
        case Activation::kDice: {
            const float p = sigmoid<kApproximate>((z - c.mean) * c.rstd);
            return z * (c.slope_or_alpha + (1.0f - c.slope_or_alpha) * p);
        }
        case Activation::kIdentity:
            return z;
    }
    return z;
}

// act(z), and with the gradient g of it: dz = g act'(z) for fixed statistics, the gradient of slope or alpha, and with
// Dice the gradient of u = (z - mean) rstd, of which dz holds rstd du already.
struct Derivative {
    float dz, dparam, du, u;
};

template <bool kApproximate>
__device__ Derivative derive(Activation activation, float z, float g, const ChannelParams& c) {
    switch (activation) {
        case Activation::kSigmoid: {
            const float y = sigmoid<kApproximate>(z);
            return {g * y * (1.0f - y), 0.0f, 0.0f, 0.0f};
        }
        case Activation::kRelu:
            return {z > 0.0f ? g : 0.0f, 0.0f, 0.0f, 0.0f};
        case Activation::kPrelu:
            return z > 0.0f ? Derivative{g, 0.0f, 0.0f, 0.0f} : Derivative{g * c.slope_or_alpha, g * z, 0.0f, 0.0f};
        case Activation::kTanh: {
            const float y = tanh_of<kApproximate>(z);
            return {g * (1.0f - y * y), 0.0f, 0.0f, 0.0f};
        }
        case Activation::kDice: {
            const float u = (z - c.mean) * c.rstd, p = sigmoid<kApproximate>(u), keep = 1.0f - c.slope_or_alpha;
            const float du = g * z * keep * p * (1.0f - p);
            return {g * (c.slope_or_alpha + keep * p) + du * c.rstd, g * z * (1.0f - p), du, u};
        }
        case Activation::kIdentity:
            return {g, 0.0f, 0.0f, 0.0f};
    }
    return {g, 0.0f, 0.0f, 0.0f};
}

}  // namespace din_kernels::cuda
