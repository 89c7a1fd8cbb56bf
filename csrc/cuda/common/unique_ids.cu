#include "common/unique_ids.cuh"

#include "common/block_scan.cuh"
#include "common/launch.cuh"
#include "common/table_rows.cuh"

namespace din_kernels::cuda {
namespace {

constexpr int kPerThread = int(kWordsPerTile) / kScanThreads;

__global__ void clear(Global<uint32_t> values, int64_t size) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < size) values.store(at, 0u);
}

__global__ void mark(IdArray ids, int64_t rows, int64_t padding_idx, Global<uint32_t> bitmap) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= ids.size) return;
    const int64_t id = ids[at];
    if (id < 0 || id >= rows || id == padding_idx) return;
    // Most duplicates find their bit set: a read spares the atomic.
    const uint32_t bit = 1u << (id % 32);
    if ((bitmap[id / 32] & bit) == 0) bitmap.atomic_or(id / 32, bit);
}

// A scan sums the set bits of words, or the values themselves. Sum is the type of the sums and of the values.
struct SetBits {
    using Sum = uint32_t;
    __device__ static uint32_t of(uint32_t word) { return uint32_t(__popc(word)); }
};
template <typename T>
struct Values {
    using Sum = T;
    __device__ static T of(T value) { return value; }
};

template <typename Of, typename T = typename Of::Sum>
__device__ T sum_of_thread(const Global<const T>& values, int64_t size, int64_t from) {
    T sum = 0;
    for (int i = 0; i < kPerThread; ++i)
        if (from + i < size) sum += Of::of(values[from + i]);
    return sum;
}

template <typename Of, typename T = typename Of::Sum>
__global__ void sum_tiles(Global<const T> values, int64_t size, Global<T> tile_sums) {
    const Shared<T> scratch(0, kScanThreads / 32);
    const int64_t from = int64_t(blockIdx.x) * kWordsPerTile + int64_t(threadIdx.x) * kPerThread;
    const Scanned<T> scanned = block_scan(sum_of_thread<Of>(values, size, from), scratch);
    if (threadIdx.x == 0) tile_sums.store(blockIdx.x, scanned.total);
}

// One block replaces tile sums by the sums of the tiles before; `total` [1] may be null.
template <typename T>
__global__ void scan_tiles(Global<T> tile_sums, int64_t tiles, Global<int64_t> total) {
    const Shared<T> scratch(0, kScanThreads / 32);
    T carry = 0;
    for (int64_t first = 0; first < tiles; first += kScanThreads) {
        const int64_t tile = first + threadIdx.x;
        const Scanned<T> scanned = block_scan(tile < tiles ? tile_sums[tile] : T{}, scratch);
        if (tile < tiles) tile_sums.store(tile, carry + scanned.before);
        carry += scanned.total;
        __syncthreads();
    }
    if (threadIdx.x == 0 && total) total.store(0, int64_t(carry));
}

// before[i] = sum of the values before i. A scan of set bits also writes the row numbers, in order, to unique.
template <typename Of, typename T = typename Of::Sum>
__global__ void scan_values(Global<const T> values, int64_t size, Global<const T> tile_sums, Global<T> before,
                            Global<int64_t> unique) {
    const Shared<T> scratch(0, kScanThreads / 32);
    const int64_t from = int64_t(blockIdx.x) * kWordsPerTile + int64_t(threadIdx.x) * kPerThread;
    const Scanned<T> scanned = block_scan(sum_of_thread<Of>(values, size, from), scratch);
    T rank = tile_sums[blockIdx.x] + scanned.before;
    for (int i = 0; i < kPerThread && from + i < size; ++i) {
        T value = values[from + i];
        before.store(from + i, rank);
        if (!unique) {
            rank += Of::of(value);
            continue;
        }
        for (; value != 0; value &= value - 1) unique.store(rank++, (from + i) * 32 + __ffs(int(value)) - 1);
    }
}

__global__ void fill_behind(Global<const int64_t> count, Global<int64_t> unique, int64_t size) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < size && at >= count[0]) unique.store(at, -1);
}

template <typename Of, typename T = typename Of::Sum>
void scan(const T* from, int64_t size, T* sums, T* to, int64_t* unique, int64_t unique_size, int64_t* total,
          Stream stream) {
    const int64_t tiles = ceil_div(size, kWordsPerTile);
    const size_t scratch = kScanThreads / 32 * sizeof(T);
    const Global<const T> values(from, size);
    const Global<T> tile_sums(sums, tiles);
    launch("sum_tiles", sum_tiles<Of>, Grid{tiles}, kScanThreads, scratch, stream, values, size, tile_sums);
    launch("scan_tiles", scan_tiles<T>, Grid{1}, kScanThreads, scratch, stream, tile_sums, tiles,
           Global<int64_t>(total, 1));
    launch("scan_values", scan_values<Of>, Grid{tiles}, kScanThreads, scratch, stream, values, size,
           Global<const T>(sums, tiles), Global<T>(to, size), Global<int64_t>(unique, unique_size));
}

}  // namespace

void unique_ids(const UniquePlan& plan, void* workspace, Ids ids, int64_t entries, int64_t rows, int64_t padding_idx,
                int64_t* unique, int64_t* unique_count, Stream stream) {
    auto* const words = carved<uint32_t>(workspace, plan.bitmap);
    const Global<uint32_t> bitmap(words, plan.words);
    const Grid over_entries{ceil_div(entries, 256)};
    launch("clear", clear, Grid{ceil_div(plan.words, 256)}, 256, 0, stream, bitmap, plan.words);
    launch("mark", mark, over_entries, 256, 0, stream, IdArray{ids, entries}, rows, padding_idx, bitmap);
    scan<SetBits>(words, plan.words, carved<uint32_t>(workspace, plan.tile_sums),
                  carved<uint32_t>(workspace, plan.word_rank), unique, entries, unique_count, stream);
    launch("fill_behind", fill_behind, over_entries, 256, 0, stream, Global<const int64_t>(unique_count, 1),
           Global<int64_t>(unique, entries), entries);
}

template <typename T>
void exclusive_scan(const T* values, int64_t size, T* tile_sums, T* before, Stream stream) {
    scan<Values<T>>(values, size, tile_sums, before, nullptr, 0, nullptr, stream);
}
template void exclusive_scan(const uint32_t*, int64_t, uint32_t*, uint32_t*, Stream);
template void exclusive_scan(const int64_t*, int64_t, int64_t*, int64_t*, Stream);

}  // namespace din_kernels::cuda
