// The call around the kernels, compiled once: unique ids by sorting, then blocks of rows on the threads.
#include "din_kernels/mba_penalty.h"

#include <algorithm>

#include "common/buffer.h"
#include "common/dispatch.h"
#include "common/parallel.h"
#include "common/sorted_ids.h"
#include "mba_penalty/call.h"

namespace din_kernels {
namespace cpu {
namespace {

// body(first, count, block) for blocks of rows
template <typename Body>
void for_blocks(int threads, int64_t rows, const Body& body) {
    const int64_t blocks = (rows + kPenaltyBlock - 1) / kPenaltyBlock;
    parallel_for(usable_threads(threads, blocks), blocks, [&](int64_t block, int) {
        const int64_t first = block * kPenaltyBlock;
        body(first, std::min(kPenaltyBlock, rows - first), block);
    });
}

}  // namespace
}  // namespace cpu

using namespace cpu;

double mba_penalty_forward(const MbaPenalty& args, int64_t& count, int threads) {
    const int64_t entries = args.entries;
    count = 0;
    if (entries > 0) {
        const Buffer<uint64_t> keys = sorted_ids(args.ids, entries, usable_threads(threads, entries / kPenaltyBlock));
        for (int64_t i = 0; i < entries; ++i) {
            const int64_t id = id_of(keys.data()[i]);
            args.unique[count] = id;
            count += id != args.padding_idx && (i + 1 == entries || id != id_of(keys.data()[i + 1]));
        }
        std::fill(args.unique + count, args.unique + entries, -1);
    }
    Buffer<double> sums(count / kPenaltyBlock + 1);
    with_dtype(args.dtype, [&](auto zero) {
        using S = decltype(zero);
        const PenaltyKernels<S>& kernels = mba_penalty_kernels_here().of<S>();
        const PenaltyCall<S> call{args};
        for_blocks(threads, count, [&](int64_t first, int64_t rows, int64_t block) {
            sums.data()[block] = kernels.forward(call, first, rows);
        });
    });
    double total = 0;
    for (int64_t block = 0; block * kPenaltyBlock < count; ++block) total += sums.data()[block];
    return args.coeff / 2 * total;
}

void mba_penalty_backward(const MbaPenalty& args, int64_t count, double grad, int threads) {
    with_dtype(args.dtype, [&](auto zero) {
        using S = decltype(zero);
        const PenaltyKernels<S>& kernels = mba_penalty_kernels_here().of<S>();
        const PenaltyCall<S> call{args};
        for_blocks(threads, count, [&](int64_t first, int64_t rows, int64_t) {
            kernels.backward(call, first, rows, grad * args.coeff);
        });
    });
}

}  // namespace din_kernels
