// The call around the kernels, compiled once: packs the MLP, runs the blocks of the plan on the threads, and adds up
// what blocks have in parts, always in the order of the plan.
#include "din_kernels/local_activation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "buffer.h"
#include "isa.h"
#include "local_activation_call.h"
#include "parallel.h"

namespace din_kernels::cpu {
namespace {

template <typename T>
const Kernels<T>& kernels_here() {
#define DIN_KERNELS_TABLE(isa)                \
    if constexpr (std::is_same_v<T, float>) { \
        return isa::local_activation_float;   \
    } else {                                  \
        return isa::local_activation_double;  \
    }
    switch (active_isa()) {
#ifdef DIN_KERNELS_HAVE_AVX512
        case Isa::kAvx512:
            DIN_KERNELS_TABLE(avx512)
#endif
#ifdef DIN_KERNELS_HAVE_AVX2
        case Isa::kAvx2:
            DIN_KERNELS_TABLE(avx2)
#endif
        default:
            DIN_KERNELS_TABLE(baseline)
    }
#undef DIN_KERNELS_TABLE
}

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

int params_of(Activation activation) {
    return activation == Activation::kPrelu ? 1 : activation == Activation::kDice ? 3 : 0;
}

// Columns of the first layer's weight [Wq, Wk, Wd, Wp]; product has no Wd.
struct FirstLayer {
    int64_t in, key, difference, product;

    FirstLayer(Features features, int64_t dim)
        : in(features == Features::kConcat ? 4 * dim : 3 * dim),
          key(dim),
          difference(features == Features::kConcat ? 2 * dim : -1),
          product(in - dim) {}
};

// The MLP in the layouts that the kernels read.
template <typename T>
class Packed {
 public:
    PackedMlp<T> mlp;

    Packed(const LocalActivationArgs<T>& args, int lanes, bool backward) {
        mlp.hidden = args.hidden;
        mlp.dim = args.dim;
        mlp.dim_p = round_up(args.dim, lanes);
        for (int l = 0; l <= args.hidden; ++l) {
            mlp.width[l] = args.layers[l].width;
            mlp.width_p[l] = round_up(args.layers[l].width, lanes);
        }
        // The first pass counts, the second writes.
        int64_t used = 0;
        lay_out(args, backward,
                [&](const T*& to, int64_t count) { used += round_up(count, kAlignment), to = nullptr; });
        memory_ = Buffer<T>(used, true);
        used = 0;
        lay_out(args, backward, [&](const T*& to, int64_t count) {
            to = memory_.data() + used;
            used += round_up(count, kAlignment);
        });
        pack_first(args, backward);
        for (int l = 0; l <= args.hidden; ++l) pack_layer(args, l, backward);
    }

 private:
    static constexpr int64_t kAlignment = 64 / sizeof(T);
    Buffer<T> memory_;

    template <typename Take>
    void lay_out(const LocalActivationArgs<T>& args, bool backward, Take take) {
        PackedMlp<T>& m = mlp;
        int64_t widest = m.dim_p;
        take(m.first_t, 2 * m.dim * m.width_p[0]);
        take(m.query_t, m.dim * m.width_p[0]);
        for (int l = 0; l <= m.hidden; ++l) {
            widest = std::max(widest, m.width_p[l]);
            take(m.bias[l], m.width_p[l]);
            if (l > 0) take(m.weight_t[l], m.width[l - 1] * m.width_p[l]);
            if (l > 0 && backward) take(m.weight[l], m.width[l] * m.width_p[l - 1]);
            if (l < m.hidden)
                for (int p = 0; p < params_of(args.activation); ++p) take(m.params[l][p], m.width_p[l]);
        }
        if (!backward) return;
        take(m.history, m.width[0] * m.dim_p);
        take(m.product, m.width[0] * m.dim_p);
        take(m.query, m.width[0] * m.dim_p);
        take(m.zeros, widest);
    }

    static T* writable(const T* packed) { return const_cast<T*>(packed); }  // into memory_

    void pack_first(const LocalActivationArgs<T>& args, bool backward) {
        const FirstLayer first(args.features, args.dim);
        const int64_t dim = mlp.dim, dim_p = mlp.dim_p, width_p = mlp.width_p[0];
        T *first_t = writable(mlp.first_t), *query_t = writable(mlp.query_t);
        T *history = writable(mlp.history), *product = writable(mlp.product), *query = writable(mlp.query);
        for (int64_t h = 0; h < mlp.width[0]; ++h) {
            const T* row = args.layers[0].weight + h * first.in;
            for (int64_t d = 0; d < dim; ++d) {
                const T difference = first.difference < 0 ? T(0) : row[first.difference + d];
                const T k = row[first.key + d] - difference, q = row[d] + difference, qk = row[first.product + d];
                first_t[d * width_p + h] = k;
                first_t[(dim + d) * width_p + h] = qk;
                query_t[d * width_p + h] = q;
                if (!backward) continue;
                history[h * dim_p + d] = k;
                product[h * dim_p + d] = qk;
                query[h * dim_p + d] = q;
            }
        }
    }

    void pack_layer(const LocalActivationArgs<T>& args, int l, bool backward) {
        const Layer<T>& layer = args.layers[l];
        const int64_t width = mlp.width[l], width_p = mlp.width_p[l];
        std::copy(layer.bias, layer.bias + width, writable(mlp.bias[l]));
        if (l > 0) {
            const int64_t in = mlp.width[l - 1], in_p = mlp.width_p[l - 1];
            for (int64_t h = 0; h < width; ++h)
                for (int64_t i = 0; i < in; ++i) {
                    writable(mlp.weight_t[l])[i * width_p + h] = layer.weight[h * in + i];
                    if (backward) writable(mlp.weight[l])[h * in_p + i] = layer.weight[h * in + i];
                }
        }
        if (l == mlp.hidden) return;
        for (int p = 0; p < params_of(args.activation); ++p)
            for (int64_t h = 0; h < width; ++h) {
                const T value = layer.params[p][layer.param_size == 1 ? 0 : h];
                const bool variance = args.activation == Activation::kDice && p == 2;
                writable(mlp.params[l][p])[h] = variance ? T(1 / std::sqrt(double(value) + layer.eps)) : value;
            }
    }
};

// Lays the partial gradients of one block at `base`; returns how many elements they take.
template <typename T>
int64_t lay_out(const PackedMlp<T>& m, Activation activation, T* base, PartialGrads<T>& grads) {
    int64_t used = 0;
    const auto take = [&](T*& to, int64_t count) {
        to = base + used;
        used += round_up(count, 64 / sizeof(T));
    };
    take(grads.history, m.width[0] * m.dim_p);
    take(grads.product, m.width[0] * m.dim_p);
    take(grads.query, m.width[0] * m.dim_p);
    for (int l = 0; l <= m.hidden; ++l) {
        take(grads.bias[l], m.width_p[l]);
        if (l > 0) take(grads.weight[l], m.width[l] * m.width_p[l - 1]);
        if (l < m.hidden)
            for (int p = 0; p < params_of(activation); ++p) take(grads.params[l][p], m.width_p[l]);
    }
    return used;
}

// The sum of all blocks' gradients into the layouts of torch.nn.Linear.
template <typename T>
void write_weight_gradients(const LocalActivationArgs<T>& args, const PackedMlp<T>& m, const PartialGrads<T>& sum) {
    const FirstLayer first(args.features, args.dim);
    for (int64_t h = 0; h < m.width[0]; ++h) {
        const T *query = sum.query + h * m.dim_p, *history = sum.history + h * m.dim_p;
        const T* product = sum.product + h * m.dim_p;
        T* row = args.layers[0].grad_weight + h * first.in;
        for (int64_t d = 0; d < m.dim; ++d) {
            row[d] = query[d];
            row[first.key + d] = history[d];
            if (first.difference >= 0) row[first.difference + d] = query[d] - history[d];
            row[first.product + d] = product[d];
        }
    }
    for (int l = 0; l <= m.hidden; ++l) {
        const Layer<T>& layer = args.layers[l];
        std::copy(sum.bias[l], sum.bias[l] + m.width[l], layer.grad_bias);
        if (l > 0)
            for (int64_t h = 0; h < m.width[l]; ++h)
                std::copy_n(sum.weight[l] + h * m.width_p[l - 1], m.width[l - 1],
                            layer.grad_weight + h * m.width[l - 1]);
        if (l == m.hidden) continue;
        for (int p = 0; p < params_of(args.activation); ++p) {
            if (layer.param_size != 1) {
                std::copy(sum.params[l][p], sum.params[l][p] + m.width[l], layer.grad_params[p]);
                continue;
            }
            T total = 0;
            for (int64_t h = 0; h < m.width[l]; ++h) total += sum.params[l][p][h];
            layer.grad_params[p][0] = total;
        }
    }
}

// A candidate whose history several entries share: the sum of its slots, softmax rescaled to the largest top.
template <typename T>
void merge_forward(const LocalActivationArgs<T>& args, const PackedMlp<T>& m, const Merge& merge, const T* slots) {
    const int64_t stride = m.dim_p + 2;
    const T* slot = slots + merge.first * stride;
    T* pooled = args.pooled + merge.query * m.dim;
    std::fill(pooled, pooled + m.dim, T(0));
    T top = -std::numeric_limits<T>::infinity(), total = 0;
    const bool softmax = args.normalize == Normalize::kSoftmax;
    if (softmax)
        for (int64_t i = 0; i < merge.count; ++i)
            if (!(slot[i * stride + m.dim_p] <= top)) top = slot[i * stride + m.dim_p];
    for (int64_t i = 0; i < merge.count; ++i, slot += stride) {
        const T rescale = softmax ? std::exp(slot[m.dim_p] - top) : T(1);
        total += slot[m.dim_p + 1] * rescale;
        for (int64_t d = 0; d < m.dim; ++d) pooled[d] += slot[d] * rescale;
    }
    if (!softmax) return;
    for (int64_t d = 0; d < m.dim; ++d) pooled[d] /= total;
    const T logsumexp = args.logsumexp[merge.query] = top + std::log(total);
    if (merge.pair >= 0)
        for (int64_t t = 0; t < merge.rows; ++t) {
            T& weight = args.pair_weights[merge.pair + t];
            weight = std::exp(weight - logsumexp);
        }
}

// out[0 .. count) = sum over `parts` stretches of `count` elements, `stride` apart
template <typename T>
void add_parts(const T* from, int64_t parts, int64_t stride, int64_t count, T* out) {
    std::copy_n(from, count, out);
    for (int64_t p = 1; p < parts; ++p)
        for (int64_t i = 0; i < count; ++i) out[i] += from[p * stride + i];
}

template <typename T>
Plan plan_of(const LocalActivationArgs<T>& args) {
    return make_plan(args.queries, args.users, args.begin, args.length, args.query_to_user, args.pair_begin);
}

int64_t blocks_of(const Plan& plan) { return int64_t(plan.blocks.size()) - 1; }

}  // namespace
}  // namespace din_kernels::cpu

namespace din_kernels {

using namespace cpu;

template <typename T>
void local_activation_forward(const LocalActivationArgs<T>& args, int threads) {
    const Kernels<T>& kernels = kernels_here<T>();
    const Plan plan = plan_of(args);
    const Packed<T> packed(args, kernels.lanes, false);
    const PackedMlp<T>& mlp = packed.mlp;
    threads = usable_threads(threads, blocks_of(plan));
    const int64_t per_thread = kernels.workspace(mlp, false);
    Buffer<T> workspace(per_thread * threads), partial_sums(plan.partials * (mlp.dim_p + 2));
    const Call<T> call{&args, mlp, &plan, partial_sums.data(), nullptr};

    parallel_for(threads, blocks_of(plan), [&](int64_t block, int thread) {
        kernels.forward(call, plan.blocks[block], plan.blocks[block + 1], workspace.data() + thread * per_thread);
    });
    for (const Merge& merge : plan.merges) merge_forward(args, mlp, merge, partial_sums.data());
    for (const int64_t query : plan.empty) {
        std::fill_n(args.pooled + query * args.dim, args.dim, T(0));
        if (args.normalize == Normalize::kSoftmax) args.logsumexp[query] = -std::numeric_limits<T>::infinity();
    }
}

template <typename T>
void local_activation_backward(const LocalActivationArgs<T>& args, int threads) {
    const Kernels<T>& kernels = kernels_here<T>();
    const Plan plan = plan_of(args);
    const Packed<T> packed(args, kernels.lanes, true);
    const PackedMlp<T>& mlp = packed.mlp;
    const int64_t blocks = blocks_of(plan), dim = args.dim;
    threads = usable_threads(threads, blocks);
    const int64_t per_thread = kernels.workspace(mlp, true);
    Buffer<T> workspace(per_thread * threads), partial_sums(plan.partials * dim);
    Buffer<T> partial_rows(args.grad_rows ? plan.partial_rows * dim : 0);
    const Call<T> call{&args, mlp, &plan, partial_sums.data(), partial_rows.data()};

    PartialGrads<T> grads;
    const int64_t per_block = lay_out<T>(mlp, args.activation, nullptr, grads);
    const int64_t grad_blocks = std::max<int64_t>(blocks, 1);
    Buffer<T> partial_grads(per_block * grad_blocks);
    if (blocks == 0) std::fill_n(partial_grads.data(), per_block, T(0));
    if (args.grad_rows && plan.touched_rows < args.rows_count) std::fill_n(args.grad_rows, args.rows_count * dim, T(0));

    parallel_for(threads, blocks, [&](int64_t block, int thread) {
        PartialGrads<T> own;
        T* base = partial_grads.data() + block * per_block;
        lay_out(mlp, args.activation, base, own);
        std::fill_n(base, per_block, T(0));
        kernels.backward(call, plan.blocks[block], plan.blocks[block + 1], workspace.data() + thread * per_thread, own);
    });

    // Block 0 takes the sum. A stretch of 1024 elements stays in L1 while the blocks are added to it.
    constexpr int64_t kStretch = 1024;
    T* sum = partial_grads.data();
    parallel_for(threads, blocks > 1 ? (per_block + kStretch - 1) / kStretch : 0, [&](int64_t stretch, int) {
        const int64_t from = stretch * kStretch, count = std::min(kStretch, per_block - from);
        for (int64_t block = 1; block < blocks; ++block)
            for (int64_t i = from; i < from + count; ++i) sum[i] += sum[block * per_block + i];
    });
    lay_out(mlp, args.activation, sum, grads);
    write_weight_gradients(args, mlp, grads);

    if (args.grad_query) {
        for (const Merge& merge : plan.merges)
            add_parts(partial_sums.data() + merge.first * dim, merge.count, dim, dim,
                      args.grad_query + merge.query * dim);
        for (const int64_t query : plan.empty) std::fill_n(args.grad_query + query * dim, dim, T(0));
    }
    if (args.grad_rows)
        for (const RowMerge& merge : plan.row_merges)
            parallel_for(threads, merge.rows, [&](int64_t t, int) {
                const int64_t position = merge.position + t;
                T* to = args.grad_rows + (args.row_index ? args.row_index[position] : position) * dim;
                add_parts(partial_rows.data() + (merge.first + t) * dim, merge.count, merge.rows * dim, dim, to);
            });
}

template void local_activation_forward(const LocalActivationArgs<float>&, int);
template void local_activation_forward(const LocalActivationArgs<double>&, int);
template void local_activation_backward(const LocalActivationArgs<float>&, int);
template void local_activation_backward(const LocalActivationArgs<double>&, int);

}  // namespace din_kernels
