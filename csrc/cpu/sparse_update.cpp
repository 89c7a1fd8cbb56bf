// The call around the kernels, compiled once: sorts the ids, then hands blocks of sorted entries to the threads.
#include "din_kernels/sparse_update.h"

#include <type_traits>

#include "buffer.h"
#include "isa.h"
#include "parallel.h"
#include "sorted_ids.h"
#include "sparse_update_call.h"

namespace din_kernels {
namespace cpu {
namespace {

template <typename T>
const UpdateKernels<T>& kernels_here() {
#define DIN_KERNELS_TABLE(isa)                \
    if constexpr (std::is_same_v<T, float>) { \
        return isa::sparse_update_float;      \
    } else {                                  \
        return isa::sparse_update_double;     \
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

}  // namespace
}  // namespace cpu

using namespace cpu;

template <typename T>
void sparse_update(const SparseUpdateArgs<T>& args, int threads) {
    if (args.entries == 0 || args.dim == 0) return;
    const UpdateKernels<T>& kernels = kernels_here<T>();
    const int64_t blocks = (args.entries + kUpdateBlock - 1) / kUpdateBlock;
    threads = usable_threads(threads, blocks);
    const Buffer<uint64_t> keys = sorted_ids(args.ids, args.entries, args.largest, threads);
    const int64_t per_thread = (args.dim + 63) / 64 * 64;
    Buffer<T> partials(blocks * args.dim), scratch(threads * per_thread);
    const UpdateCall<T> call{&args, keys.data(), partials.data()};
    parallel_for(threads, blocks, [&](int64_t block, int) { kernels.partial(call, block); });
    parallel_for(threads, blocks,
                 [&](int64_t block, int thread) { kernels.update(call, block, scratch.data() + thread * per_thread); });
}

template void sparse_update(const SparseUpdateArgs<float>&, int);
template void sparse_update(const SparseUpdateArgs<double>&, int);

}  // namespace din_kernels
