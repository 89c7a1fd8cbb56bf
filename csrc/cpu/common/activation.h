// Activations as small policies: value, derivative and parameter gradients for one vector of a channel block.
#pragma once

#include "common/simd.h"
#include "din_kernels/local_activation.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

template <typename T>
struct Identity {
    static constexpr int kParams = params_per_layer(Activation::kIdentity, false);
    Vec<T> value(Vec<T> z) const { return z; }
    Vec<T> slope(Vec<T>, Vec<T>) const { return splat(T(1)); }
};
template <typename T>
struct Sigmoid {
    static constexpr int kParams = params_per_layer(Activation::kSigmoid, false);
    Vec<T> value(Vec<T> z) const { return sigmoid(z); }
    Vec<T> slope(Vec<T>, Vec<T> h) const { return h * (1 - h); }
};
template <typename T>
struct Tanh {
    static constexpr int kParams = params_per_layer(Activation::kTanh, false);
    // tanh z = z - z^3/3 + 2 z^5/15 - 17 z^7/315 near 0, where 2 sigmoid(2 z) - 1 cancels.
    Vec<T> value(Vec<T> z) const {
        const Vec<T> far = 2 * sigmoid(2 * z) - 1, zz = z * z;
        const T near = sizeof(T) == 4 ? T(0.1) : T(0.005);
        const Vec<T> series = z + z * zz * (T(-1) / 3 + zz * (T(2) / 15 + zz * (T(-17) / 315 + zz * (T(62) / 2835))));
        return (z > -near) & (z < near) ? series : far;
    }
    Vec<T> slope(Vec<T>, Vec<T> h) const { return 1 - h * h; }
};
template <typename T>
struct Silu {
    static constexpr int kParams = params_per_layer(Activation::kSilu, false);
    // Below kLowest, where `sigmoid` stops at 1e-38 (float) or 1e-308, z times its value would grow again: p is 0
    // there, so that y is -0, and NaN for z = -inf as by torch.nn.functional.silu.
    static constexpr T kLowest = sizeof(T) == 4 ? T(-87) : T(-708);
    Vec<T> gate(Vec<T> z) const { return z < kLowest ? Vec<T>{} : sigmoid(z); }
    Vec<T> value(Vec<T> z) const { return z * gate(z); }
    Vec<T> slope(Vec<T> z, Vec<T> h) const {
        const Vec<T> p = gate(z);
        return p + h * (1 - p);
    }
};
template <typename T>
struct Relu {
    static constexpr int kParams = params_per_layer(Activation::kRelu, false);
    Vec<T> value(Vec<T> z) const { return z < 0 ? Vec<T>{} : z; }  // NaN passes
    Vec<T> slope(Vec<T> z, Vec<T>) const { return z > 0 ? splat(T(1)) : Vec<T>{}; }
};
template <typename T>
struct Prelu {  // params: slope
    static constexpr int kParams = params_per_layer(Activation::kPrelu, false);
    Vec<T> a;
    Vec<T> value(Vec<T> z) const { return z > 0 ? z : a * z; }
    Vec<T> slope(Vec<T> z, Vec<T>) const { return z > 0 ? splat(T(1)) : a; }
    // dy/da = min(z, 0)
    void param_grads(Vec<T> z, Vec<T> dh, Vec<T>* grads) const { grads[0] += z > 0 ? Vec<T>{} : dh * z; }
};
template <typename T>
struct Dice {  // params: alpha, mean, 1 / sqrt(var + eps), all of them given; y = z (alpha + (1 - alpha) p)
    static constexpr int kParams = params_per_layer(Activation::kDice, false);
    Vec<T> alpha, mean, inverse;
    Vec<T> bias{};  // of an affine batch norm, whose weight is part of `inverse`; the unit has none
    Vec<T> p(Vec<T> z) const { return sigmoid((z - mean) * inverse + bias); }
    Vec<T> value(Vec<T> z) const { return z * (alpha + (1 - alpha) * p(z)); }
    // dy/dz = alpha + (1 - alpha) (p + z p (1 - p) / sqrt(var + eps))
    Vec<T> slope(Vec<T> z, Vec<T>) const {
        const Vec<T> gate = p(z);
        return alpha + (1 - alpha) * (gate + z * gate * (1 - gate) * inverse);
    }
    // dy/dalpha = z (1 - p); dy/dmean = -z (1 - alpha) p (1 - p) r; dy/dvar = -z (1 - alpha) p (1 - p) (z - mean) r^3 /
    // 2
    void param_grads(Vec<T> z, Vec<T> dh, Vec<T>* grads) const {
        const Vec<T> gate = p(z), common = dh * z * (1 - alpha) * gate * (1 - gate) * inverse;
        grads[0] += dh * z * (1 - gate);
        grads[1] -= common;
        grads[2] -= common * (z - mean) * inverse * inverse / 2;
    }
};

// Calls body(policy) with the activation's policy for the channels at `params[p][channel ...]`, padded to the vector.
template <typename T, typename Make>
inline void with_activation(Activation activation, Make make) {
    switch (activation) {
        case Activation::kSigmoid:
            return make([](const T* const*, int64_t) { return Sigmoid<T>{}; });
        case Activation::kRelu:
            return make([](const T* const*, int64_t) { return Relu<T>{}; });
        case Activation::kTanh:
            return make([](const T* const*, int64_t) { return Tanh<T>{}; });
        case Activation::kSilu:
            return make([](const T* const*, int64_t) { return Silu<T>{}; });
        case Activation::kIdentity:
            return make([](const T* const*, int64_t) { return Identity<T>{}; });
        case Activation::kPrelu:
            return make([](const T* const* p, int64_t j) { return Prelu<T>{load(p[0] + j)}; });
        case Activation::kDice:
            return make(
                [](const T* const* p, int64_t j) { return Dice<T>{load(p[0] + j), load(p[1] + j), load(p[2] + j)}; });
    }
}

// h[rows, width] = act(z), in place or not
template <typename T>
void activate(Activation activation, const T* const* params, int64_t rows, int64_t width, const T* z, T* h) {
    with_activation<T>(activation, [&](auto policy_at) {
        for (int64_t j = 0; j < width; j += kLanes<T>) {
            const auto policy = policy_at(params, j);
            for (int64_t i = 0; i < rows; ++i) store(h + i * width + j, policy.value(load(z + i * width + j)));
        }
    });
}

// dz[rows, width] = dh act'(z), in place of dh; parameter gradients [width] are added to
template <typename T>
void activate_backward(Activation activation, const T* const* params, int64_t rows, int64_t width, const T* z,
                       const T* h, T* dh, T* const* grad_params) {
    with_activation<T>(activation, [&](auto policy_at) {
        for (int64_t j = 0; j < width; j += kLanes<T>) {
            const auto policy = policy_at(params, j);
            constexpr int kParams = decltype(policy)::kParams;
            Vec<T> grads[kParams + 1] = {};
            for (int64_t i = 0; i < rows; ++i) {
                const Vec<T> zi = load(z + i * width + j), dhi = load(dh + i * width + j);
                if constexpr (kParams > 0) policy.param_grads(zi, dhi, grads);
                store(dh + i * width + j, dhi * policy.slope(zi, load(h + i * width + j)));
            }
            for (int p = 0; p < kParams; ++p) store(grad_params[p] + j, load(grad_params[p] + j) + grads[p]);
        }
    });
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
