// Loops on OpenMP threads: those that PyTorch's CPU operators run on, where it is loaded first. With
// DIN_KERNELS_STD_THREADS on std::thread instead, whose every step ThreadSanitizer sees; libgomp's barriers it does
// not.
#pragma once

#include <cstdint>

#if defined(DIN_KERNELS_STD_THREADS)
#include <atomic>
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace din_kernels::cpu {

// At most `threads` for `tasks` tasks, at least 1; 1 in a forked child, whose OpenMP pool did not survive the fork.
int usable_threads(int threads, int64_t tasks);

// body(task, thread), thread in 0 .. threads; tasks are handed out one by one.
template <typename Body>
void parallel_for(int threads, int64_t tasks, const Body& body) {
    if (threads <= 1 || tasks <= 1) {
        for (int64_t task = 0; task < tasks; ++task) body(task, 0);
        return;
    }
#if defined(DIN_KERNELS_STD_THREADS)
    std::atomic<int64_t> next{0};
    const auto work = [&](int thread) {
        for (int64_t task; (task = next++) < tasks;) body(task, thread);
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
    work(0);
    for (std::thread& other : others) other.join();
#elif defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
#endif
}

}  // namespace din_kernels::cpu
