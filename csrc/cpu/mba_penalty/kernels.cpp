// Norms and gradients of the rows of a batch. Compiled once per ISA; exports one table and nothing else.
#include "common/storage.h"
#include "common/table_rows.h"
#include "mba_penalty/call.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

template <typename S>
DIN_KERNELS_PREFETCHES void prefetch_row(const PenaltyCall<S>& call, int64_t id) {
    prefetch(call.weight + id * call.args.dim, call.args.dim * int64_t(sizeof(S)));
    prefetch_count(call.args.counts, id);
}

template <typename S>
double forward(const PenaltyCall<S>& call, int64_t first, int64_t count) {
    using T = Wide<S>;
    const int64_t *ids = call.args.unique + first, dim = call.args.dim;
    double total = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) prefetch_row(call, ids[i + kAhead]);
        const S* row = call.weight + ids[i] * dim;
        Vec<T> squares{};
        int64_t d = 0;
        for (; d + kLanes<T> <= dim; d += kLanes<T>) squares += load_wide(row + d) * load_wide(row + d);
        T norm = sum<T>(squares);
        for (; d < dim; ++d) norm += widen(row[d]) * widen(row[d]);
        total += double(norm) / count_of(call.args.counts, ids[i]);
    }
    return total;
}

template <typename S>
void backward(const PenaltyCall<S>& call, int64_t first, int64_t count, double scale) {
    using T = Wide<S>;
    const int64_t *ids = call.args.unique + first, dim = call.args.dim;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) prefetch_row(call, ids[i + kAhead]);
        const S* __restrict row = call.weight + ids[i] * dim;
        S* __restrict to = call.out + (call.args.dense ? ids[i] : first + i) * dim;
        const T factor = T(scale / count_of(call.args.counts, ids[i]));
        int64_t d = 0;
        for (; d + kLanes<T> <= dim; d += kLanes<T>) store_narrow(to + d, factor * load_wide(row + d));
        for (; d < dim; ++d) narrow(factor * widen(row[d]), to + d);
    }
}

template <typename S>
constexpr PenaltyKernels<S> kKernels = {forward<S>, backward<S>};

}  // namespace

extern const KernelTable<PenaltyKernels> mba_penalty_kernels = {kKernels<float>, kKernels<double>, kKernels<BFloat16>,
                                                                kKernels<Float16>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
