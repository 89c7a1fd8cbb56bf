#include "common/sorted_ids.h"

#include <algorithm>

#include "common/parallel.h"

namespace din_kernels::cpu {
namespace {

// 2048 counters are 8 KB; a table of 1,000,000 rows takes two passes.
constexpr int kDigitBits = 11;
// Below this many entries a second thread costs more than it saves.
constexpr int64_t kChunk = 8192;

// One stable pass by the digit at `shift`: counts per chunk, then where each chunk's share of a digit begins, then
// moves.
template <typename Key>
void pass(const Key& key, int64_t entries, int shift, int bits, int64_t chunks, int threads, uint32_t* counts,
          uint64_t* out) {
    const int64_t digits = int64_t(1) << bits, mask = digits - 1;
    const auto from = [=](int64_t chunk) { return entries * chunk / chunks; };
    parallel_for(threads, chunks, [&](int64_t chunk, int) {
        uint32_t* count = counts + chunk * digits;
        std::fill_n(count, digits, 0);
        for (int64_t i = from(chunk), end = from(chunk + 1); i < end; ++i) ++count[(key(i) >> shift) & mask];
    });
    uint32_t begin = 0;
    for (int64_t digit = 0; digit < digits; ++digit)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            uint32_t& count = counts[chunk * digits + digit];
            begin += count;
            count = begin - count;
        }
    parallel_for(threads, chunks, [&](int64_t chunk, int) {
        uint32_t* next = counts + chunk * digits;
        for (int64_t i = from(chunk), end = from(chunk + 1); i < end; ++i) {
            const uint64_t k = key(i);
            out[next[(k >> shift) & mask]++] = k;
        }
    });
}

template <typename Id>
Buffer<uint64_t> sort(const Id* ids, int64_t entries, int threads) {
    // Bits of the largest id: fewer of them save passes.
    uint64_t any = 0;
    for (int64_t i = 0; i < entries; ++i) any |= uint64_t(ids[i]);
    int id_bits = 1;
    while (any >> id_bits) ++id_bits;
    const int passes = (id_bits + kDigitBits - 1) / kDigitBits, bits = (id_bits + passes - 1) / passes;
    const int64_t chunks = std::clamp<int64_t>(entries / kChunk, 1, threads);
    Buffer<uint32_t> counts(chunks << bits);
    Buffer<uint64_t> keys(entries), other(passes > 1 ? entries : 0);
    const auto first = [=](int64_t i) { return uint64_t(ids[i]) << 32 | uint64_t(i); };
    pass(first, entries, 32, bits, chunks, threads, counts.data(), keys.data());
    for (int p = 1; p < passes; ++p) {
        const auto next = [from = keys.data()](int64_t i) { return from[i]; };
        pass(next, entries, 32 + p * bits, bits, chunks, threads, counts.data(), other.data());
        std::swap(keys, other);
    }
    return keys;
}

}  // namespace

Buffer<uint64_t> sorted_ids(const Ids& ids, int64_t entries, int threads) {
    if (ids.is_int64) return sort(static_cast<const int64_t*>(ids.data), entries, threads);
    return sort(static_cast<const int32_t*>(ids.data), entries, threads);
}

}  // namespace din_kernels::cpu
