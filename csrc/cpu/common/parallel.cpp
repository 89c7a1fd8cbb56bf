#include "common/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>

namespace din_kernels::cpu {
namespace {

std::atomic<bool> forked{false};

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

int usable_threads(int threads, int64_t tasks) {
#if defined(_OPENMP) || defined(DIN_KERNELS_STD_THREADS)
    if (forked) return 1;
    return int(std::clamp<int64_t>(tasks, 1, std::max(threads, 1)));
#else
    return 1;
#endif
}

}  // namespace din_kernels::cpu
