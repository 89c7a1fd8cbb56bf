#include "local_activation/pack.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "common/parallel.h"

namespace din_kernels::cpu {
namespace {

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

template <typename T>
constexpr int64_t kAlignment = 64 / sizeof(T);

// Columns of the first layer's weight: [Wq, Wk, Wd, Wp] (product has no Wd), or [Wq, Wk, vec(Wo)].
struct FirstLayer {
    int64_t in, key, difference, last;  // difference: -1 where there is none; last: Wp or Wo
};

// Throws std::invalid_argument where a feature set has no columns here. The compiler warns of one that is missing.
FirstLayer first_layer(Features features, int64_t dim) {
    switch (features) {
        case Features::kConcat:
            return {4 * dim, dim, 2 * dim, 3 * dim};
        case Features::kProduct:
            return {3 * dim, dim, -1, 2 * dim};
        case Features::kOuter:
            return {2 * dim + dim * dim, dim, -1, 2 * dim};
    }
    throw std::invalid_argument("features must be a set whose columns the CPU kernels know, got number " +
                                std::to_string(int(features)));
}

template <typename T>
const T* elements(const TypedArray& array) {
    return static_cast<const T*>(array.data);
}

template <typename T>
T* writable(const T* packed) {  // into memory of its own
    return const_cast<T*>(packed);
}

// Lays the partial gradients of one block at `base`; returns how many elements they take.
template <typename T>
int64_t lay_out(const LocalActivation& args, const PackedMlp<T>& m, T* base, PartialGrads<T>& grads) {
    int64_t used = 0;
    const auto take = [&](T*& to, int64_t count) {
        to = base ? base + used : nullptr;
        used += round_up(count, kAlignment<T>);
    };
    const bool outer = args.features == Features::kOuter;  // those of Wk and Wo are summed over rounds instead
    take(grads.weight_k, outer ? 0 : m.width[0] * m.dim_p);
    take(grads.weight_qk, outer ? 0 : m.width[0] * m.dim_p);
    take(grads.weight_q, m.width[0] * m.dim_p);
    for (int l = 0; l <= m.hidden; ++l) {
        take(grads.bias[l], m.width_p[l]);
        if (l > 0) take(grads.weight[l], m.width[l] * m.width_p[l - 1]);
        if (l < m.hidden)
            for (int p = 0; p < packed_params(args); ++p) take(grads.params[l][p], m.width_p[l]);
    }
    return used;
}

template <typename T>
void set_sizes(const LocalActivation& args, int lanes, PackedMlp<T>& m) {
    m.hidden = args.hidden;
    m.dim = args.dim;
    m.dim_p = round_up(args.dim, lanes);
    for (int l = 0; l <= args.hidden; ++l) {
        m.width[l] = args.layers[l].width;
        m.width_p[l] = round_up(args.layers[l].width, lanes);
    }
}

}  // namespace

template <typename T>
int64_t gradient_size(const LocalActivation& args) {
    PackedMlp<T> m;
    set_sizes(args, 1, m);
    PartialGrads<T> grads;
    return lay_out<T>(args, m, nullptr, grads);
}

template <typename T>
PackedWeights<T>::PackedWeights(const LocalActivation& args, int lanes, bool backward, int threads) {
    set_sizes(args, lanes, mlp);
    // The first pass counts, the second hands out.
    int64_t used = 0;
    lay_out(args, backward, [&](const T*& to, int64_t count) { used += round_up(count, kAlignment<T>), to = nullptr; });
    memory_ = Buffer<T>(used, true);
    used = 0;
    lay_out(args, backward, [&](const T*& to, int64_t count) {
        to = memory_.data() + used;
        used += round_up(count, kAlignment<T>);
    });
    pack_first(args, backward);
    if (args.features == Features::kOuter) pack_outer(args, backward, threads);
    for (int l = 0; l <= args.hidden; ++l) pack_layer(args, l, backward);
}

template <typename T>
template <typename Take>
void PackedWeights<T>::lay_out(const LocalActivation& args, bool backward, Take take) {
    PackedMlp<T>& m = mlp;
    const int64_t in_t = m.dim * m.width_p[0], in = m.width[0] * m.dim_p;
    const bool outer = args.features == Features::kOuter;
    int64_t widest = std::max(m.dim_p, in_t);
    take(m.weight_k_t, in_t);
    take(m.weight_q_t, in_t);
    if (outer)
        take(m.weight_outer_t, m.dim * in_t);
    else
        take(m.weight_qk_t, in_t);
    for (int l = 0; l <= m.hidden; ++l) {
        widest = std::max(widest, m.width_p[l]);
        take(m.bias[l], m.width_p[l]);
        if (l > 0) take(m.weight_t[l], m.width[l - 1] * m.width_p[l]);
        if (l > 0 && backward) take(m.weight[l], m.width[l] * m.width_p[l - 1]);
        if (l == m.hidden) continue;
        for (int p = 0; p < packed_params(args); ++p) take(m.params[l][p], m.width_p[l]);
        if (backward && args.dice_training) take(m.through_mean[l], m.width_p[l]), take(m.through_var[l], m.width_p[l]);
    }
    if (!backward) return;
    if (outer) {
        take(m.weight_outer, m.dim * in);
    } else {
        take(m.weight_k, in);
        take(m.weight_qk, in);
    }
    take(m.weight_q, in);
    take(m.zeros, widest);
}

template <typename T>
void PackedWeights<T>::pack_first(const LocalActivation& args, bool backward) {
    const FirstLayer first = first_layer(args.features, args.dim);
    const bool outer = args.features == Features::kOuter;
    const int64_t dim = mlp.dim, dim_p = mlp.dim_p, width_p = mlp.width_p[0];
    T *k_t = writable(mlp.weight_k_t), *qk_t = writable(mlp.weight_qk_t), *q_t = writable(mlp.weight_q_t);
    T *weight_k = writable(mlp.weight_k), *weight_qk = writable(mlp.weight_qk), *weight_q = writable(mlp.weight_q);
    for (int64_t h = 0; h < mlp.width[0]; ++h) {
        const T* row = elements<T>(args.layers[0].weight) + h * first.in;
        for (int64_t d = 0; d < dim; ++d) {
            const T difference = first.difference < 0 ? T(0) : row[first.difference + d];
            const T k = row[first.key + d] - difference, q = row[d] + difference, qk = row[first.last + d];
            k_t[d * width_p + h] = k;
            q_t[d * width_p + h] = q;
            if (backward) weight_q[h * dim_p + d] = q;
            if (outer) continue;
            qk_t[d * width_p + h] = qk;
            if (!backward) continue;
            weight_k[h * dim_p + d] = k;
            weight_qk[h * dim_p + d] = qk;
        }
    }
}

template <typename T>
void PackedWeights<T>::pack_outer(const LocalActivation& args, bool backward, int threads) {
    const FirstLayer first = first_layer(args.features, args.dim);
    const int64_t dim = mlp.dim, width = mlp.width[0];
    const T* vec = elements<T>(args.layers[0].weight) + first.last;  // [h][j * D + d], rows first.in apart
    T *outer_t = writable(mlp.weight_outer_t), *outer = writable(mlp.weight_outer);
    parallel_for(threads, dim, [&](int64_t j, int) {
        for (int64_t d = 0; d < dim; ++d)
            for (int64_t h = 0; h < width; ++h)
                outer_t[(d * dim + j) * mlp.width_p[0] + h] = vec[h * first.in + j * dim + d];
    });
    if (!backward) return;
    parallel_for(threads, width, [&](int64_t h, int) {
        for (int64_t d = 0; d < dim; ++d)
            for (int64_t j = 0; j < dim; ++j) outer[(d * width + h) * mlp.dim_p + j] = vec[h * first.in + j * dim + d];
    });
}

template <typename T>
void PackedWeights<T>::pack_layer(const LocalActivation& args, int l, bool backward) {
    const Layer& layer = args.layers[l];
    const int64_t width = mlp.width[l], width_p = mlp.width_p[l];
    const T* weight = elements<T>(layer.weight);
    std::copy_n(elements<T>(layer.bias), width, writable(mlp.bias[l]));
    if (l > 0) {
        const int64_t in = mlp.width[l - 1], in_p = mlp.width_p[l - 1];
        for (int64_t h = 0; h < width; ++h)
            for (int64_t i = 0; i < in; ++i) {
                writable(mlp.weight_t[l])[i * width_p + h] = weight[h * in + i];
                if (backward) writable(mlp.weight[l])[h * in_p + i] = weight[h * in + i];
            }
    }
    if (l == mlp.hidden) return;
    const int given = params_per_layer(args.activation, args.dice_training);
    for (int p = 0; p < given; ++p)
        for (int64_t h = 0; h < width; ++h) {
            const T value = elements<T>(layer.params[p])[layer.params[p].size == 1 ? 0 : h];
            const bool variance = args.activation == Activation::kDice && p == 2;
            writable(mlp.params[l][p])[h] = variance ? T(1 / std::sqrt(double(value) + layer.eps)) : value;
        }
}

template <typename T>
void PackedWeights<T>::set_statistics(const LocalActivation& args, int layer, const T* mean, const T* var) {
    for (int64_t h = 0; h < mlp.width[layer]; ++h) {
        writable(mlp.params[layer][1])[h] = mean[h];
        writable(mlp.params[layer][2])[h] = T(1 / std::sqrt(double(var[h]) + args.layers[layer].eps));
    }
}

template <typename T>
void PackedWeights<T>::set_through_statistics(int layer, const T* grad_mean, const T* grad_var, int64_t count) {
    // d mean / dz = 1 / n;  d var / dz = 2 (z - mean) / n, the share through the mean being 0
    for (int64_t h = 0; h < mlp.width[layer]; ++h) {
        writable(mlp.through_mean[layer])[h] = grad_mean[h] / T(count);
        writable(mlp.through_var[layer])[h] = 2 * grad_var[h] / T(count);
    }
}

template <typename T>
BlockGradients<T>::BlockGradients(const LocalActivation& args, const PackedMlp<T>& mlp, int64_t blocks)
    : blocks_(std::max<int64_t>(blocks, 1)) {
    PartialGrads<T> none;
    per_block_ = lay_out<T>(args, mlp, nullptr, none);
    memory_ = Buffer<T>(per_block_ * blocks_);
    grads_ = Buffer<PartialGrads<T>>(blocks_, true);
    for (int64_t block = 0; block < blocks_; ++block)
        lay_out(args, mlp, memory_.data() + block * per_block_, grads_.data()[block]);
}

template <typename T>
void BlockGradients<T>::clear(int threads) {
    parallel_for(threads, blocks_,
                 [&](int64_t block, int) { std::fill_n(memory_.data() + block * per_block_, per_block_, T(0)); });
}

template <typename T>
void BlockGradients<T>::add_up(int threads) {
    // A stretch of 1024 elements stays in L1 while the blocks are added to it.
    constexpr int64_t kStretch = 1024;
    T* sum = memory_.data();
    parallel_for(threads, blocks_ > 1 ? (per_block_ + kStretch - 1) / kStretch : 0, [&](int64_t stretch, int) {
        const int64_t from = stretch * kStretch, to = std::min(from + kStretch, per_block_);
        for (int64_t block = 1; block < blocks_; ++block)
            for (int64_t i = from; i < to; ++i) sum[i] += sum[block * per_block_ + i];
    });
}

namespace {

// dWq = dWq', dWk = dWk', dWd = dWq' - dWk', dWp: the first layer as it was before the fold.
template <typename T>
void write_first_layer(const LocalActivation& args, const PackedMlp<T>& m, const PartialGrads<T>& sum,
                       const OuterRound<T>& round, int threads) {
    const FirstLayer first = first_layer(args.features, args.dim);
    T* weight = static_cast<T*>(args.layers[0].grad_weight);
    const int64_t dim = m.dim, width = m.width[0], width_p = m.width_p[0];
    const bool outer = args.features == Features::kOuter;
    for (int64_t h = 0; h < width; ++h) {
        T* row = weight + h * first.in;
        for (int64_t d = 0; d < dim; ++d) {
            const T q = sum.weight_q[h * m.dim_p + d];
            const T k = outer ? round.grad_weight_k[d * width_p + h] : sum.weight_k[h * m.dim_p + d];
            row[d] = q;
            row[first.key + d] = k;
            if (first.difference >= 0) row[first.difference + d] = q - k;
            if (!outer) row[first.last + d] = sum.weight_qk[h * m.dim_p + d];
        }
    }
    if (!outer) return;
    parallel_for(threads, dim, [&](int64_t j, int) {
        for (int64_t d = 0; d < dim; ++d)
            for (int64_t h = 0; h < width; ++h)
                weight[h * first.in + first.last + j * dim + d] = round.grad_weight_outer[(d * dim + j) * width_p + h];
    });
}

// The gradient of a parameter [H], or of one [1] that all channels share.
template <typename T>
void write_param(const TypedArray& param, const T* sum, int64_t width, T* to) {
    if (param.size != 1) {
        std::copy_n(sum, width, to);
        return;
    }
    T total = 0;
    for (int64_t h = 0; h < width; ++h) total += sum[h];
    to[0] = total;
}

}  // namespace

template <typename T>
void write_weight_gradients(const LocalActivation& args, const PackedMlp<T>& m, const PartialGrads<T>& sum,
                            const OuterRound<T>& outer, int threads) {
    write_first_layer(args, m, sum, outer, threads);
    const int params = params_per_layer(args.activation, args.dice_training);
    for (int l = 0; l <= m.hidden; ++l) {
        const Layer& layer = args.layers[l];
        std::copy_n(sum.bias[l], m.width[l], static_cast<T*>(layer.grad_bias));
        for (int64_t h = 0; l > 0 && h < m.width[l]; ++h)
            std::copy_n(sum.weight[l] + h * m.width_p[l - 1], m.width[l - 1],
                        static_cast<T*>(layer.grad_weight) + h * m.width[l - 1]);
        for (int p = 0; l < m.hidden && p < params; ++p)
            write_param(layer.params[p], sum.params[l][p], m.width[l], static_cast<T*>(layer.grad_params[p]));
    }
}

template class PackedWeights<float>;
template class PackedWeights<double>;
template class BlockGradients<float>;
template class BlockGradients<double>;
template int64_t gradient_size<float>(const LocalActivation&);
template int64_t gradient_size<double>(const LocalActivation&);
template void write_weight_gradients(const LocalActivation&, const PackedMlp<float>&, const PartialGrads<float>&,
                                     const OuterRound<float>&, int);
template void write_weight_gradients(const LocalActivation&, const PackedMlp<double>&, const PartialGrads<double>&,
                                     const OuterRound<double>&, int);

}  // namespace din_kernels::cpu
