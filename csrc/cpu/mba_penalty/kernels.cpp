// Norms and gradients of the rows of a batch. Compiled once per ISA; exports one table and nothing else.
#include "mba_penalty/call.h"
#include "common/storage.h"
#include "common/table_rows.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

template <typename S>
DIN_KERNELS_PREFETCHES void prefetch_row(const MbaPenaltyArgs<S>& a, int64_t id) {
    prefetch(a.weight + id * a.dim, a.dim * int64_t(sizeof(S)));
    prefetch_count(a.counts, id);
}

template <typename S>
double forward(const MbaPenaltyArgs<S>& a, const int64_t* ids, int64_t count) {
    using T = Wide<S>;
    double total = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) prefetch_row(a, ids[i + kAhead]);
        const S* row = a.weight + ids[i] * a.dim;
        Vec<T> squares{};
        int64_t d = 0;
        for (; d + kLanes<T> <= a.dim; d += kLanes<T>) squares += load_wide(row + d) * load_wide(row + d);
        T norm = sum<T>(squares);
        for (; d < a.dim; ++d) norm += widen(row[d]) * widen(row[d]);
        total += double(norm) / count_of(a.counts, ids[i]);
    }
    return total;
}

template <typename S>
void backward(const MbaPenaltyArgs<S>& a, const int64_t* ids, int64_t count, double scale, bool dense, S* out) {
    using T = Wide<S>;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) prefetch_row(a, ids[i + kAhead]);
        const S* __restrict row = a.weight + ids[i] * a.dim;
        S* __restrict to = out + (dense ? ids[i] : i) * a.dim;
        const T factor = T(scale / count_of(a.counts, ids[i]));
        int64_t d = 0;
        for (; d + kLanes<T> <= a.dim; d += kLanes<T>) store_narrow(to + d, factor * load_wide(row + d));
        for (; d < a.dim; ++d) narrow(factor * widen(row[d]), to + d);
    }
}

template <typename S>
constexpr PenaltyKernels<S> kKernels = {forward<S>, backward<S>};

}  // namespace

extern const KernelTable<PenaltyKernels> mba_penalty_kernels = {kKernels<float>, kKernels<double>, kKernels<BFloat16>,
                                                                kKernels<Float16>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
