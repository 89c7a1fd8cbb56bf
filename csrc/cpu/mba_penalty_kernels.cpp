// Norms and gradients of the rows of a batch. Compiled once per ISA; exports two tables and nothing else.
#include "mba_penalty_call.h"
#include "table_rows.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

template <typename T>
inline void prefetch_row(const MbaPenaltyArgs<T>& a, int64_t id) {
    prefetch(a.weight + id * a.dim, a.dim * int64_t(sizeof(T)));
    prefetch_count(a.counts, id);
}

template <typename T>
double forward(const MbaPenaltyArgs<T>& a, const int64_t* ids, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) prefetch_row(a, ids[i + kAhead]);
        const T* row = a.weight + ids[i] * a.dim;
        Vec<T> squares{};
        int64_t d = 0;
        for (; d + kLanes<T> <= a.dim; d += kLanes<T>) squares += load(row + d) * load(row + d);
        T norm = sum<T>(squares);
        for (; d < a.dim; ++d) norm += row[d] * row[d];
        total += double(norm) / count_of(a.counts, ids[i]);
    }
    return total;
}

template <typename T>
void backward(const MbaPenaltyArgs<T>& a, const int64_t* ids, int64_t count, double scale, bool dense, T* out) {
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) prefetch_row(a, ids[i + kAhead]);
        const T* __restrict row = a.weight + ids[i] * a.dim;
        T* __restrict to = out + (dense ? ids[i] : i) * a.dim;
        const T factor = T(scale / count_of(a.counts, ids[i]));
        for (int64_t d = 0; d < a.dim; ++d) to[d] = factor * row[d];
    }
}

}  // namespace

extern const PenaltyKernels<float> mba_penalty_float = {forward<float>, backward<float>};
extern const PenaltyKernels<double> mba_penalty_double = {forward<double>, backward<double>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
