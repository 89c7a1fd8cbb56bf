// The call around the kernels, compiled once: unique ids by sorting, then blocks of rows on the threads.
#include "din_kernels/mba_penalty.h"

#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "isa.h"
#include "mba_penalty_call.h"
#include "parallel.h"
#include "sorted_ids.h"

namespace din_kernels {
namespace cpu {
namespace {

template <typename T>
const PenaltyKernels<T>& kernels_here() {
#define DIN_KERNELS_TABLE(isa)                \
    if constexpr (std::is_same_v<T, float>) { \
        return isa::mba_penalty_float;        \
    } else {                                  \
        return isa::mba_penalty_double;       \
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

template <typename T>
double mba_penalty_forward(const MbaPenaltyArgs<T>& args, int64_t* unique, int threads) {
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
    const PenaltyKernels<T>& kernels = kernels_here<T>();
    for_blocks(threads, count, [&](int64_t first, int64_t rows, int64_t block) {
        sums.data()[block] = kernels.forward(args, unique + first, rows);
    });
    double total = 0;
    for (int64_t block = 0; block * kPenaltyBlock < count; ++block) total += sums.data()[block];
    return args.coeff / 2 * total;
}

template <typename T>
void mba_penalty_backward(const MbaPenaltyArgs<T>& args, const int64_t* unique, int64_t count, double grad, bool dense,
                          T* out, int threads) {
    const PenaltyKernels<T>& kernels = kernels_here<T>();
    for_blocks(threads, count, [&](int64_t first, int64_t rows, int64_t) {
        kernels.backward(args, unique + first, rows, grad * args.coeff, dense, dense ? out : out + first * args.dim);
    });
}

template double mba_penalty_forward(const MbaPenaltyArgs<float>&, int64_t*, int);
template double mba_penalty_forward(const MbaPenaltyArgs<double>&, int64_t*, int);
template void mba_penalty_backward(const MbaPenaltyArgs<float>&, const int64_t*, int64_t, double, bool, float*, int);
template void mba_penalty_backward(const MbaPenaltyArgs<double>&, const int64_t*, int64_t, double, bool, double*, int);

}  // namespace din_kernels
