#include "local_activation/fold.h"

#include "common/launch.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/fold.cuh"

namespace din_kernels::cuda {
namespace {

template <typename S>
struct FoldCall {
    Chunk chunk;
    Sizes sizes;
    FirstWeight weight;
    FoldPlan plan;
    Global<const S> query;                // [Q, D]
    Global<const uint32_t> weight_outer;  // packed [H1, outer_words]; null but for outer features
    Global<S> matrices;                   // [chunk, parts, packed [D, H1]]
    Global<S> transposed;                 // [chunk, packed [H1, D]] or null
};

// Stores one element of A_i, and of A_i^T, for the candidates of the lane's two rows.
template <typename Math, int kParts>
struct FoldedElements {
    using S = typename Math::Storage;
    static constexpr int kPerWord = int(4 / sizeof(S));
    const FoldCall<S>& call;
    int h, dim8;
    int64_t first;  // candidate of the lane's upper row
    PackedOrder order, transposed_order;

    // (Wk - Wd)[h, d] and what the queries of the two candidates add to it. Padding is stored too: it meets zeros and
    // must not be NaN.
    __device__ void store(int d, const float (&by_query)[2]) const {
        const float weight_k = call.weight.weight_k(h, d);
        const int64_t to = Math::position(d, h, order), to_transposed = Math::position(h, d, transposed_order);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (first + 8 * half >= call.chunk.end) continue;
            const int64_t i = first + 8 * half - call.chunk.begin;
            const float sum = weight_k + by_query[half];
            const S value = Math::rounded(sum);
            if (h < call.sizes.padded[0] && d < call.sizes.dim_padded) {
                const int64_t part = call.plan.words * kPerWord;
                call.matrices.store(i * kParts * part + to, value);
                if (kParts == 2) call.matrices.store((i * kParts + 1) * part + to, Math::rounded(sum - widen(value)));
            }
            if (call.transposed && d < dim8)
                call.transposed.store(i * call.plan.transposed_words * kPerWord + to_transposed, value);
        }
    }
};

// Row h of A_i, and column h of A_i^T, of a block's candidates: block (x, y) takes the candidates x and h = y.
template <typename Math, bool kOuter>
__global__ void fold_candidates(FoldCall<typename Math::Storage> call) {
    using S = typename Math::Storage;
    constexpr int kParts = kOuter && sizeof(S) == 2 ? 2 : 1;  // as in the plan
    const Sizes& sizes = call.sizes;
    const int h = int(blockIdx.y), dim = sizes.dim, stride = sizes.stride[0], lane = int(threadIdx.x) % 32;
    const int first_row = int(threadIdx.x) / 32 * kRowsPerWarp, row = first_row + lane / 4;
    const int padded = sizes.padded[0], dim8 = (dim + 7) / 8 * 8;
    const int64_t first = call.chunk.begin + int64_t(blockIdx.x) * candidates_per_block();
    const FoldedElements<Math, kParts> elements{call,
                                                h,
                                                dim8,
                                                first + row,
                                                {padded / 8, sizes.steps[0]},
                                                {dim8 / 8, (padded + Math::kDepth - 1) / Math::kDepth}};
    // The queries.
    const Shared<S> tile(0, candidates_per_block() * stride);
    load_rows<Math>(tile, sizes, [&](int row, int column) {
        return first + row < call.chunk.end ? widen(call.query[(first + row) * dim + column]) : 0.0f;
    });
    // Outer features add sum_j q_ij Wo[h, j, d], a product with the packed Wo[h].
    if constexpr (kOuter)
        for_groups(dim8 / 8, [&](int group, auto count) {
            constexpr int kCount = decltype(count)::value;
            Sums<kCount> sums = {};
            const int64_t words = call.plan.outer_words;
            if (h < sizes.width[0])
                Math::multiply(sums, tile, first_row * stride, stride, sizes.steps[0],
                               call.weight_outer.part(h * words, words), group);
#pragma unroll
            for (int t = 0; t < kCount; ++t)
#pragma unroll
                for (int c = 0; c < 2; ++c)
                    elements.store((group + t) * 8 + 2 * (lane % 4) + c, {sums[t][c], sums[t][2 + c]});
        });
    // The others add Wp[h, d] q_id; outer features have only padding left.
    const int columns = dim8 > sizes.dim_padded ? dim8 : sizes.dim_padded;
    for (int d = (kOuter ? dim8 : 0) + 2 * (lane % 4); d < columns; d += 8)
        for (int c = 0; c < 2; ++c) {
            const bool there = !kOuter && d + c < dim;
            const float weight_qk = there ? call.weight.weight_qk(h, d + c) : 0.0f;
            const int at = row * stride + d + c;
            elements.store(d + c, {there ? weight_qk * widen(tile[at]) : 0.0f,
                                   there ? weight_qk * widen(tile[at + 8 * stride]) : 0.0f});
        }
}

}  // namespace

void prepare_fold(const LocalActivation& call, const Sizes& sizes, const FoldPlan& plan, Stream stream) {
    if (call.features != Features::kOuter) return;
    const FeatureColumns columns = feature_columns(call);
    const auto job = [&](bool from_k, int64_t offset) {
        // Wo[h] is [j, d], row-major, and lies in row h of W1.
        PackedSource source{};
        source.weight = call.layers[0].weight, source.leading = call.dim, source.first = columns.weight_outer;
        source.in = source.out = source.padded_in = call.dim, source.transposed = !from_k;
        source.count = sizes.width[0], source.apart = columns.total;
        return PackJob{source, carved<uint32_t>(call.workspace, offset)};
    };
    std::vector<PackJob> jobs = {job(false, plan.weight_outer)};
    if (plan.transposed_words) jobs.push_back(job(true, plan.weight_outer_transposed));
    pack_matrices(call, sizes, jobs, stream);
}

void fold(const LocalActivation& call, const Sizes& sizes, const Workspace& work, const FoldPlan& plan, Chunk chunk,
          Stream stream) {
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        using S = typename Math::Storage;
        const auto packed = [&](int64_t words, int64_t offset) {
            return Global<S>(words ? carved<S>(call.workspace, offset) : nullptr,
                             plan.chunk * words * int64_t(4 / sizeof(S)));
        };
        const bool outer = call.features == Features::kOuter;
        const FoldCall<S> parameters{
            chunk,
            sizes,
            first_weight(call, sizes),
            plan,
            query_of<S>(call, work),
            Global<const uint32_t>(outer ? carved<uint32_t>(call.workspace, plan.weight_outer) : nullptr,
                                   sizes.width[0] * plan.outer_words),
            packed(plan.parts * plan.words, plan.matrices),
            packed(plan.transposed_words, plan.transposed)};
        const int candidates = plan.warps * kRowsPerWarp;
        const Grid grid{ceil_div(chunk.end - chunk.begin, candidates), round_up(sizes.padded[0], sizes.depth)};
        launch("fold_candidates", outer ? fold_candidates<Math, true> : fold_candidates<Math, false>, grid,
               32 * plan.warps, size_t(candidates * sizes.stride[0]) * sizeof(S), stream, parameters);
    });
}

}  // namespace din_kernels::cuda
