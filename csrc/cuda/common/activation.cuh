// Activations as small structs that hold the number of their parameters, the value and the derivative of one element
// beside each other. The unit reaches them through with_activation; the kernels of dice take the formulas of
// activations::Dice. A new activation is a struct here and its line in with_activation, and nothing else in csrc/cuda.
#pragma once

#include "common/ptx.cuh"
#include "din_kernels/local_activation.h"

namespace din_kernels::cuda {

// fp32 takes the full expf. bf16 and fp16 (kApproximate) take tanh.approx, sigmoid(x) = (1 + tanh(x / 2)) / 2, whose
// absolute error is at most 2^-12: below the 2^-9 of rounding a bf16 value in [0.5, 1), and as large as that of fp16.
template <bool kApproximate>
__device__ float sigmoid(float x) {
    if constexpr (kApproximate) return 0.5f * ptx::tanh_approx(0.5f * x) + 0.5f;
    return 1.0f / (1.0f + expf(-x));
}

// The parameters of one channel as kernels read them: slope of prelu or alpha of Dice, and for Dice the mean and
// 1 / sqrt(var + eps).
struct ChannelParams {
    float slope_or_alpha, mean, rstd;
};
struct ChannelPair {
    ChannelParams at[2];
};

// A derivative takes the gradient g of act(z) to dz = g act'(z) for fixed statistics, the gradient of slope or alpha,
// and for Dice u = (z - mean) rstd and its gradient du, which dz already contains as rstd du.
struct Derivative {
    float dz, dparam, du, u;
};

namespace activations {

template <bool kApproximate>
struct Identity {
    static constexpr int kParams = params_per_layer(Activation::kIdentity, false);
    __device__ static float value(float z, const ChannelParams&) { return z; }
    __device__ static Derivative derivative(float, float g, const ChannelParams&) { return {g, 0.0f, 0.0f, 0.0f}; }
};

// y' = y (1 - y)
template <bool kApproximate>
struct Sigmoid {
    static constexpr int kParams = params_per_layer(Activation::kSigmoid, false);
    __device__ static float value(float z, const ChannelParams&) { return sigmoid<kApproximate>(z); }
    __device__ static Derivative derivative(float z, float g, const ChannelParams&) {
        const float y = sigmoid<kApproximate>(z);
        return {g * y * (1.0f - y), 0.0f, 0.0f, 0.0f};
    }
};

// y' = 1 - y^2
template <bool kApproximate>
struct Tanh {
    static constexpr int kParams = params_per_layer(Activation::kTanh, false);
    __device__ static float value(float z, const ChannelParams&) {
        if constexpr (kApproximate) return ptx::tanh_approx(z);
        return tanhf(z);
    }
    __device__ static Derivative derivative(float z, float g, const ChannelParams& c) {
        const float y = value(z, c);
        return {g * (1.0f - y * y), 0.0f, 0.0f, 0.0f};
    }
};

// y = z p,  p = sigmoid(z),  y' = p + y (1 - p). With kApproximate the error of y is at most 2^-12 |z|.
template <bool kApproximate>
struct Silu {
    static constexpr int kParams = params_per_layer(Activation::kSilu, false);
    __device__ static float value(float z, const ChannelParams&) { return z * sigmoid<kApproximate>(z); }
    __device__ static Derivative derivative(float z, float g, const ChannelParams&) {
        const float p = sigmoid<kApproximate>(z);
        return {g * (p + z * p * (1.0f - p)), 0.0f, 0.0f, 0.0f};
    }
};

template <bool kApproximate>
struct Relu {
    static constexpr int kParams = params_per_layer(Activation::kRelu, false);
    // NaN stays NaN.
    __device__ static float value(float z, const ChannelParams&) { return z > 0.0f ? z : (z == z ? 0.0f : z); }
    __device__ static Derivative derivative(float z, float g, const ChannelParams&) {
        return {z > 0.0f ? g : 0.0f, 0.0f, 0.0f, 0.0f};
    }
};

// y = slope z where z <= 0;  dy/dslope = min(z, 0)
template <bool kApproximate>
struct Prelu {
    static constexpr int kParams = params_per_layer(Activation::kPrelu, false);
    __device__ static float value(float z, const ChannelParams& c) { return z > 0.0f ? z : c.slope_or_alpha * z; }
    __device__ static Derivative derivative(float z, float g, const ChannelParams& c) {
        return z > 0.0f ? Derivative{g, 0.0f, 0.0f, 0.0f} : Derivative{g * c.slope_or_alpha, g * z, 0.0f, 0.0f};
    }
};

// y = z (alpha + (1 - alpha) p),  p = sigmoid(t)
// dy/dz = alpha + (1 - alpha) p for a fixed t,  dy/dt = z (1 - alpha) p (1 - p),  dy/dalpha = z (1 - p)
// t = u = (z - mean) rstd in the unit, and t = weight u + bias in dice, which also brings p and 1 - p of its own.
template <bool kApproximate>
struct Dice {
    static constexpr int kParams = params_per_layer(Activation::kDice, false);  // alpha, mean, var

    struct Gate {
        float p, q;  // q = 1 - p
    };
    struct Gradient {
        float direct, dt, dalpha;  // direct: g dy/dz for a fixed t
    };
    __device__ static float gated(float z, float alpha, float p) { return z * (alpha + (1.0f - alpha) * p); }
    __device__ static Gradient gated_gradient(float z, float g, float alpha, Gate gate) {
        return {g * (alpha + (1.0f - alpha) * gate.p), g * z * (1.0f - alpha) * gate.p * gate.q, g * z * gate.q};
    }

    __device__ static float value(float z, const ChannelParams& c) {
        return gated(z, c.slope_or_alpha, sigmoid<kApproximate>((z - c.mean) * c.rstd));
    }
    __device__ static Derivative derivative(float z, float g, const ChannelParams& c) {
        const float u = (z - c.mean) * c.rstd, p = sigmoid<kApproximate>(u);
        const Gradient of = gated_gradient(z, g, c.slope_or_alpha, {p, 1.0f - p});
        return {of.direct + of.dt * c.rstd, of.dalpha, of.dt, u};
    }
};

}  // namespace activations

// Calls body(Struct{}) with the activation's struct, so that loops over elements do not branch on it.
template <bool kApproximate, typename Body>
__device__ void with_activation(Activation activation, const Body& body) {
    switch (activation) {
        case Activation::kSigmoid:
            return body(activations::Sigmoid<kApproximate>{});
        case Activation::kRelu:
            return body(activations::Relu<kApproximate>{});
        case Activation::kPrelu:
            return body(activations::Prelu<kApproximate>{});
        case Activation::kTanh:
            return body(activations::Tanh<kApproximate>{});
        case Activation::kSilu:
            return body(activations::Silu<kApproximate>{});
        case Activation::kDice:
            return body(activations::Dice<kApproximate>{});
        case Activation::kIdentity:
            return body(activations::Identity<kApproximate>{});
    }
}

// Parameters per channel. An activation with three of them normalizes: the second and third are mean and variance.
__device__ inline int params_of(Activation activation) {
    int params = 0;
    with_activation<false>(activation, [&](auto act) { params = decltype(act)::kParams; });
    return params;
}
constexpr int kNormalizingParams = activations::Dice<false>::kParams;

}  // namespace din_kernels::cuda
