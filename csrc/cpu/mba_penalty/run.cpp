// The call around the kernels, compiled once: unique ids by sorting, then blocks of rows on the threads.
#include "din_kernels/mba_penalty.h"

#include <algorithm>

#include "common/buffer.h"
#include "mba_penalty/call.h"
#include "common/parallel.h"
#include "common/sorted_ids.h"

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

template <typename S>
double mba_penalty_forward(const MbaPenaltyArgs<S>& args, int64_t* unique, int threads) {
    const int64_t entries = args.entries;
    int64_t count = 0;
    if (entries > 0) {
        const Buffer<uint64_t> keys =
            sorted_ids(args.ids, entries, args.largest, usable_threads(threads, entries / kPenaltyBlock));
        for (int64_t i = 0; i < entries; ++i) {
            const int64_t id = id_of(keys.data()[i]);
            unique[count] = id;
            count += id != args.padding_idx && (i + 1 == entries || id != id_of(keys.data()[i + 1]));
        }
        std::fill(unique + count, unique + entries, -1);
    }
    Buffer<double> sums(count / kPenaltyBlock + 1);
    const PenaltyKernels<S>& kernels = mba_penalty_kernels_here().of<S>();
    for_blocks(threads, count, [&](int64_t first, int64_t rows, int64_t block) {
        sums.data()[block] = kernels.forward(args, unique + first, rows);
    });
    double total = 0;
    for (int64_t block = 0; block * kPenaltyBlock < count; ++block) total += sums.data()[block];
    return args.coeff / 2 * total;
}

template <typename S>
void mba_penalty_backward(const MbaPenaltyArgs<S>& args, const int64_t* unique, int64_t count, double grad, bool dense,
                          S* out, int threads) {
    const PenaltyKernels<S>& kernels = mba_penalty_kernels_here().of<S>();
    for_blocks(threads, count, [&](int64_t first, int64_t rows, int64_t) {
        kernels.backward(args, unique + first, rows, grad * args.coeff, dense, dense ? out : out + first * args.dim);
    });
}

#define DIN_KERNELS_INSTANTIATE(S)                                                \
    template double mba_penalty_forward(const MbaPenaltyArgs<S>&, int64_t*, int); \
    template void mba_penalty_backward(const MbaPenaltyArgs<S>&, const int64_t*, int64_t, double, bool, S*, int);
DIN_KERNELS_INSTANTIATE(float)
DIN_KERNELS_INSTANTIATE(double)
DIN_KERNELS_INSTANTIATE(BFloat16)
DIN_KERNELS_INSTANTIATE(Float16)

}  // namespace din_kernels
