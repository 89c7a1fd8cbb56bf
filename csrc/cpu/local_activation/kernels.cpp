// Compiled once per ISA; exports one table and nothing else.
#include "local_activation/backward.h"
#include "local_activation/forward.h"
#include "local_activation/moments.h"
#include "local_activation/outer.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

template <typename T>
void fetch_query(const LocalActivation& args, int64_t query, int64_t dim_p, T* to) {
    fetch_row(args.query, args.dtype, query, dim_p, to);
}
template <typename T>
void write_query_grad(const LocalActivation& args, int64_t query, const T* from) {
    write_row_grad(args.query, args.grad_query, kDTypeOf<T>, query, from);
}
template <typename T>
void write_history_grad(const LocalActivation& args, int64_t row, const T* from) {
    write_row_grad(args.history, args.grad_history, args.dtype, row, from);
}

template <typename T>
constexpr Kernels<T> kTable = {
    kLanes<T>,         workspace_size<T>,   forward_block<T>,          moments_block<T>,
    backward_block<T>, outer_fold<T>,       outer_weight_gradients<T>, outer_query_gradients<T>,
    fetch_query<T>,    write_query_grad<T>, write_history_grad<T>};

}  // namespace

extern const ArithmeticTable<Kernels> local_activation_kernels = {kTable<float>, kTable<double>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
