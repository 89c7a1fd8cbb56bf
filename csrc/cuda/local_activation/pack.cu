#include "local_activation/pack.h"

#include <algorithm>

#include "common/launch.cuh"
#include "common/typed.cuh"
#include "local_activation/dispatch.h"

namespace din_kernels::cuda {
namespace {

struct PackJobs {
    PackedSource source[kMaxPackJobs];
    int64_t steps[kMaxPackJobs], words[kMaxPackJobs];
    uint32_t* packed[kMaxPackJobs];
};

// A row of blocks per matrix, a thread per word.
template <typename Math>
__global__ void pack(PackJobs jobs) {
    const int job = int(blockIdx.y);
    const PackedSource& source = jobs.source[job];
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, words = jobs.words[job];
    if (at >= words * source.count) return;
    const int64_t begin = source.first + at / words * source.apart;
    const PackedOrder order{words / (Math::kWords * jobs.steps[job]), jobs.steps[job]};
    const uint32_t word = Math::word(at % words, order, [&](int64_t k, int64_t n) {
        if (k >= source.in || n >= source.out) return 0.0f;
        const int64_t row = source.transposed ? k : n, column = source.transposed ? n : k;
        const float first = typed_at(source.weight, row * source.leading + begin + column);
        if (source.sign == 0.0f) return first;
        return first + source.sign * typed_at(source.weight, row * source.leading + source.second + column);
    });
    Global<uint32_t>(jobs.packed[job], words * source.count).store(at, word);
}

}  // namespace

void pack_matrices(const LocalActivation& call, const Sizes& sizes, const std::vector<PackJob>& jobs, Stream stream) {
    PackJobs packed{};
    int64_t most = 0;
    for (size_t j = 0; j < jobs.size(); ++j) {
        const PackedSizes p = packed_sizes(sizes, jobs[j].source.padded_in, jobs[j].source.out);
        packed.source[j] = jobs[j].source, packed.packed[j] = jobs[j].packed;
        packed.steps[j] = p.steps, packed.words[j] = p.words;
        most = std::max(most, p.words * jobs[j].source.count);
    }
    with_math(call, [&](auto math) {
        launch("pack", pack<decltype(math)>, Grid{ceil_div(most, 256), int64_t(jobs.size())}, 256, 0, stream, packed);
    });
}

void pack_weights(const LocalActivation& call, const Sizes& sizes, const PackedWeights& to, bool transposed,
                  Stream stream) {
    const FeatureColumns columns = feature_columns(call);
    std::vector<PackJob> jobs;
    const auto add = [&](PackedSource source, int64_t in, int64_t padded_in, int64_t out, int64_t padded_out,
                         int64_t offset) {
        source.in = transposed ? out : in, source.out = transposed ? in : out;
        source.padded_in = transposed ? padded_out : padded_in, source.transposed = transposed;
        jobs.push_back({source, carved<uint32_t>(call.workspace, offset)});
    };
    const auto add_first = [&](int64_t block, float sign_of_difference, int64_t offset) {
        PackedSource source{};
        source.weight = call.layers[0].weight, source.leading = columns.total;
        source.first = block, source.second = columns.weight_difference;
        source.sign = columns.has_difference() ? sign_of_difference : 0.0f;
        add(source, call.dim, call.dim, sizes.width[0], sizes.padded[0], offset);
    };
    add_first(columns.weight_q, 1.0f, to.weight_q);
    if (!sizes.folded) {
        add_first(columns.weight_k, -1.0f, to.weight_k);
        add_first(columns.weight_qk, 0.0f, to.weight_qk);
    }
    for (int l = 1; l < sizes.layers; ++l) {
        PackedSource source{};
        source.weight = call.layers[l].weight, source.leading = sizes.width[l - 1];
        add(source, sizes.width[l - 1], sizes.padded[l - 1], sizes.width[l], sizes.padded[l], to.layers[l]);
    }
    pack_matrices(call, sizes, jobs, stream);
}

}  // namespace din_kernels::cuda
