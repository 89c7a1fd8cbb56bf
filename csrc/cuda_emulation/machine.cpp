#include "machine.h"

#include <algorithm>
#include <cstring>
#include <mutex>

namespace din_kernels::emulation {
namespace {

struct Copy {
    uint32_t offset;
    const void* from;
    uint32_t bytes, valid_bytes;
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Thread {
    Fiber fiber;
    State state = State::kReady;
    int line = 0;                          // where it waits
    uint64_t generation = 0;               // of the warp operation that it waits for
    std::vector<Copy> copies;              // not committed yet
    std::deque<std::vector<Copy>> groups;  // committed, oldest first
};

struct Warp {
    uint64_t generation = 0;
    int arrived = 0;
    const char* operation = nullptr;
    int line = 0;
    uint32_t epoch = 0;                                    // __syncwarp so far
    alignas(16) unsigned char left[2][kWarp * kExchange];  // by parity of the generation: a lane is at most one ahead
};

struct Machine {
    std::mutex one_launch;
    Stacks stacks;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    Shadow shadow;
    uint32_t epoch = 0;  // barriers so far, over all blocks
    int at_barrier = 0;
    // of the launch
    const char* kernel = "";
    const std::function<void()>* body = nullptr;
    Dim3 grid, block;
    unsigned threads_in_block = 0;
    size_t shared_bytes = 0;
    std::string faulted;
    int running = 0;
};

Machine& machine() {
    static Machine one;
    return one;
}

Moment now() {
    const Machine& m = machine();
    return {m.running, m.epoch, m.warps[m.running / kWarp].epoch};
}

void suspend(State state, int line) {
    Thread& self = machine().threads[machine().running];
    self.state = state, self.line = line;
    self.fiber.suspend();
}

void run_thread(void*) {
    Machine& m = machine();
    try {
        (*m.body)();
    } catch (const Fault& fault) {
        m.faulted = fault.what();
    }
    m.threads[m.running].state = State::kDone;
}

std::string where(int thread) {
    const Machine& m = machine();
    return std::string(m.kernel) + ": block (" + std::to_string(m.block.x) + ", " + std::to_string(m.block.y) +
           "), thread " + std::to_string(thread) + ": ";
}

// Says why no thread can run though not all have ended.
[[noreturn]] void stuck() {
    Machine& m = machine();
    const auto waits = [&](State state) {
        return std::find_if(m.threads.begin(), m.threads.begin() + m.threads_in_block,
                            [&](const Thread& t) { return t.state == state; });
    };
    const auto in_warp = waits(State::kInWarp), at_barrier = waits(State::kAtBarrier), done = waits(State::kDone);
    const auto index = [&](auto it) { return int(it - m.threads.begin()); };
    if (in_warp != m.threads.begin() + m.threads_in_block) {
        const Warp& warp = m.warps[index(in_warp) / kWarp];
        throw Fault(where(index(in_warp)) + warp.operation + " at line " + std::to_string(warp.line) +
                    " is not reached by every lane of its mask");
    }
    throw Fault(where(index(done)) + "ended without the barrier at line " + std::to_string(at_barrier->line) +
                ", at which " + std::to_string(m.at_barrier) + " threads wait");
}

void release_barrier() {
    Machine& m = machine();
    const int line = m.threads[0].line;
    for (unsigned t = 0; t < m.threads_in_block; ++t) {
        if (m.threads[t].line != line)
            throw Fault(where(int(t)) + "is at the barrier of line " + std::to_string(m.threads[t].line) +
                        ", others are at that of line " + std::to_string(line));
        m.threads[t].state = State::kReady;
    }
    m.at_barrier = 0;
    ++m.epoch;
}

void run_block() {
    Machine& m = machine();
    m.shadow.begin_block(uint32_t(m.shared_bytes), ++m.epoch);
    m.at_barrier = 0;
    for (Warp& warp : m.warps) warp.generation = 0, warp.arrived = 0, warp.epoch = 0;
    for (unsigned t = 0; t < m.threads_in_block; ++t) {
        Thread& thread = m.threads[t];
        thread.state = State::kReady, thread.copies.clear(), thread.groups.clear();
        thread.fiber.start(m.stacks.at(t), Stacks::kBytes, run_thread, nullptr);
    }
    for (;;) {
        bool ran = false, all_done = true;
        for (unsigned t = 0; t < m.threads_in_block; ++t) {
            Thread& thread = m.threads[t];
            if (thread.state == State::kInWarp && m.warps[t / kWarp].generation > thread.generation)
                thread.state = State::kReady;
            if (thread.state == State::kReady) {
                m.running = int(t);
                thread.fiber.resume();
                ran = true;
                if (!m.faulted.empty()) throw Fault(m.faulted);
            }
            all_done &= thread.state == State::kDone;
        }
        if (all_done) return;
        if (m.at_barrier == int(m.threads_in_block))
            release_barrier();
        else if (!ran)
            stuck();
    }
}

}  // namespace

Device& device() {
    static Device one;
    return one;
}

void run_grid(const char* kernel, Dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& body) {
    Machine& m = machine();
    const std::lock_guard<std::mutex> lock(m.one_launch);
    m.kernel = kernel, m.grid = grid, m.body = &body, m.threads_in_block = threads, m.shared_bytes = shared_bytes;
    m.faulted.clear();
    if (m.threads.size() < threads) m.threads.resize(threads);
    m.warps.resize((threads + kWarp - 1) / kWarp);
    // There are exactly as many bytes as were asked for, so that a sanitizer sees the end as well.
    m.shared.assign(shared_bytes, 0xFF);
    const uint64_t blocks = uint64_t(grid.x) * grid.y;
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t at = device().reverse_blocks ? blocks - 1 - i : i;
        m.block = {unsigned(at % grid.x), unsigned(at / grid.x), 0};
        run_block();
    }
}

Dim3 thread_index() { return {unsigned(machine().running), 0, 0}; }
Dim3 block_index() { return machine().block; }
Dim3 block_dim() { return {machine().threads_in_block, 1, 1}; }
Dim3 grid_dim() { return machine().grid; }
int lane() { return machine().running % kWarp; }
size_t shared_size() { return machine().shared_bytes; }

void fault(const std::string& what) { throw Fault(where(machine().running) + what); }

void barrier(int line) {
    ++machine().at_barrier;
    suspend(State::kAtBarrier, line);
}

const unsigned char* exchange(const char* operation, int line, unsigned mask, const void* mine, size_t bytes) {
    Machine& m = machine();
    const int warp_index = m.running / kWarp;
    Warp& warp = m.warps[warp_index];
    const int lanes = std::min<int>(kWarp, int(m.threads_in_block) - warp_index * kWarp);
    if (mask != ~0u) fault(std::string(operation) + " must name all lanes in its mask");
    if (lanes != kWarp)
        fault(std::string(operation) + " needs a whole warp: the block has " + std::to_string(m.threads_in_block) +
              " threads");
    if (warp.arrived == 0) {
        warp.operation = operation, warp.line = line;
    } else if (warp.line != line || std::strcmp(warp.operation, operation) != 0) {
        fault(std::string(operation) + " at line " + std::to_string(line) + " while another lane is at " +
              warp.operation + " of line " + std::to_string(warp.line));
    }
    unsigned char* left = warp.left[warp.generation % 2];
    std::memcpy(left + lane() * kExchange, mine, bytes);
    if (++warp.arrived == lanes) {
        warp.arrived = 0, ++warp.generation;
    } else {
        m.threads[m.running].generation = warp.generation;
        suspend(State::kInWarp, line);
    }
    return left;
}

void warp_barrier(int line, unsigned mask) {
    const char nothing = 0;
    // The epoch moves once, with the last lane that arrives, before another one runs.
    Machine& m = machine();
    Warp& warp = m.warps[m.running / kWarp];
    if (warp.arrived == kWarp - 1) ++warp.epoch;
    exchange("__syncwarp", line, mask, &nothing, 1);
}

unsigned char* shared_access(uint32_t offset, uint32_t bytes, Access access) {
    Machine& m = machine();
    if (const char* wrong = m.shadow.access(offset, bytes, access, now()))
        fault("shared memory at byte " + std::to_string(offset) + " " + wrong);
    return m.shared.data() + offset;
}

void check_aligned(const char* memory, const void* address, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(address) % bytes)
        fault(std::string(memory) + " access of " + std::to_string(bytes) + " bytes is not aligned");
}

void start_copy(uint32_t offset, const void* from, uint32_t bytes, uint32_t valid_bytes) {
    Machine& m = machine();
    if (const char* wrong = m.shadow.start_copy(offset, bytes, now()))
        fault("shared memory at byte " + std::to_string(offset) + " " + wrong);
    m.threads[m.running].copies.push_back({offset, from, bytes, valid_bytes});
}

void commit_copies() {
    Thread& self = machine().threads[machine().running];
    self.groups.push_back(std::move(self.copies));
    self.copies.clear();
}

void wait_for_copies(size_t groups_left) {
    Machine& m = machine();
    Thread& self = m.threads[m.running];
    for (; self.groups.size() > groups_left; self.groups.pop_front())
        for (const Copy& copy : self.groups.front()) {
            m.shadow.finish_copy(copy.offset, copy.bytes, now());
            std::memset(m.shared.data() + copy.offset, 0, copy.bytes);
            std::memcpy(m.shared.data() + copy.offset, copy.from, copy.valid_bytes);
        }
}

}  // namespace din_kernels::emulation
