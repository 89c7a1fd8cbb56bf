// The CUDA execution model on one CPU thread. The blocks of a grid run one after the other, and the threads of a block
// are fibers that run until they must wait for each other. A Fault is what hardware would punish or silently get wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "shadow.h"

namespace din_kernels::emulation {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// The message names the kernel, the block and thread, and the array where there is one.
class Fault : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr int kArchitecture = 90;  // the emulated module has code for this one alone

struct Device {
    int multiprocessors = 3;               // few, so that persistent kernels loop in small tests
    size_t shared_per_block = 227 * 1024;  // of sm_90 and sm_100
    bool reverse_blocks = false;           // blocks run from the last to the first: results must not depend on it
    int architecture = kArchitecture;
};
Device& device();

void run_grid(const char* kernel, Dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& body);

// Kernels reach the functions below, each on behalf of the thread that runs.
Dim3 thread_index();
Dim3 block_index();
Dim3 block_dim();
Dim3 grid_dim();
[[noreturn]] void fault(const std::string& what);

void barrier(int line);

// A warp operation at source line `line`. It leaves `bytes` (at most kExchange) of this lane, waits for the other lanes
// and returns what all of them left, kExchange apart. The result is valid until the lane's next warp operation but one.
constexpr size_t kExchange = 64;
const unsigned char* exchange(const char* operation, int line, unsigned mask, const void* mine, size_t bytes);
void warp_barrier(int line, unsigned mask);
int lane();

// The block's shared memory from byte `offset` on, once the access has passed the checks.
unsigned char* shared_access(uint32_t offset, uint32_t bytes, Access access);
size_t shared_size();
void check_aligned(const char* memory, const void* address, size_t bytes);

// cp.async, whose bytes arrive when their group is waited for.
void start_copy(uint32_t offset, const void* from, uint32_t bytes, uint32_t valid_bytes);
void commit_copies();
void wait_for_copies(size_t groups_left);

}  // namespace din_kernels::emulation
