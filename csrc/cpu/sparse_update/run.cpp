// The call around the kernels, compiled once: sorts the ids, then hands blocks of sorted entries to the threads.
#include "din_kernels/sparse_update.h"

#include "common/buffer.h"
#include "common/dispatch.h"
#include "common/parallel.h"
#include "common/sorted_ids.h"
#include "sparse_update/call.h"

namespace din_kernels {

using namespace cpu;

void sparse_update(const SparseUpdate& args, int threads) {
    if (args.entries == 0 || args.dim == 0) return;
    const int64_t blocks = (args.entries + kUpdateBlock - 1) / kUpdateBlock;
    threads = usable_threads(threads, blocks);
    const Buffer<uint64_t> keys = sorted_ids(args.ids, args.entries, threads);
    const int64_t per_thread = (2 * args.dim + 63) / 64 * 64;
    with_dtype(args.dtype, [&](auto zero) {
        using S = decltype(zero);
        const UpdateKernels<S>& kernels = sparse_update_kernels_here().of<S>();
        Buffer<Wide<S>> partials(blocks * args.dim), scratch(threads * per_thread);
        const UpdateCall<S> call{args, keys.data(), partials.data()};
        parallel_for(threads, blocks, [&](int64_t block, int) { kernels.partial(call, block); });
        parallel_for(threads, blocks, [&](int64_t block, int thread) {
            kernels.update(call, block, scratch.data() + thread * per_thread);
        });
    });
}

}  // namespace din_kernels
