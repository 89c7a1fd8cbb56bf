// slots <blocks> <length of each candidate's history>... prints how the pairs of the unit are cut into tiles and
// blocks:
//   total <pairs>
//   block <begin> <end> <candidate and row of the block's first pair> <of the last pair of its first tile>
//   candidate <first block> <last block>
// No table is read, so lengths may be of any size.
#include <cstdlib>
#include <iostream>
#include <vector>

#include "common/unique_ids.cu"
#include "local_activation/tile_loader.cuh"

using namespace din_kernels::cuda;

namespace {

constexpr int kRows = 64;

struct Shown {
    int64_t begin, end, first[2], last[2];
};

void show_blocks(TileLoader<float, false> loader, Global<Shown> shown) {
    const Range range(loader.pairs.slots.total(), kRows, blockIdx.x, gridDim.x);
    if (range.begin == range.end) return;
    int64_t cursor = loader.pairs.find(range.begin, 0);
    loader.fetch(range.begin, range.end, 0, cursor);
    __syncthreads();
    const Shared<int> candidates = loader.candidates_of(0);
    const Shared<int64_t> rows = loader.rows_of(0);
    const int last = loader.valid(range.begin, range.end, candidates) - 1;
    if (threadIdx.x == 0)
        shown.store(blockIdx.x, {range.begin, range.end, {candidates[0], rows[0]}, {candidates[last], rows[last]}});
}

}  // namespace

int main(int count, char** arguments) {
    const int64_t blocks = std::atoll(arguments[1]), candidates = count - 2;
    std::vector<int64_t> lengths(candidates + 1), begin(candidates), first(candidates + 1), sums(candidates + 1);
    for (int64_t i = 0; i < candidates; ++i) {
        lengths[i] = std::atoll(arguments[i + 2]);
        if (i > 0) begin[i] = begin[i - 1] + lengths[i - 1];
    }
    exclusive_scan(lengths.data(), candidates + 1, sums.data(), first.data(), nullptr);
    const Slots slots{0, candidates, Global<const int64_t>(first.data(), candidates + 1)};
    std::cout << "total " << slots.total() << "\n";
    const Pairs pairs{slots,
                      Global<const int64_t>(begin.data(), candidates),
                      Global<const int64_t>(lengths.data(), candidates),
                      Global<const int64_t>(nullptr, 0),
                      Global<const bool>(nullptr, 0),
                      Global<const int64_t>(nullptr, 0)};
    const uint32_t candidate = 0, row = kRows * 4, window = row + kRows * 8;
    const TileLoader<float, false> loader{pairs, {}, 0, 0, kRows, 128, 0, 0, candidate, row, window};
    std::vector<Shown> shown(blocks);
    launch("show_blocks", show_blocks, Grid{blocks}, 128, window + (kRows + 1) * 4, nullptr, loader,
           Global<Shown>(shown.data(), blocks));
    for (const Shown& s : shown)
        std::cout << "block " << s.begin << " " << s.end << " " << s.first[0] << " " << s.first[1] << " " << s.last[0]
                  << " " << s.last[1] << "\n";
    for (int64_t i = 0; i < candidates; ++i) {
        const BlocksOf in(slots, i, kRows, blocks);
        std::cout << "candidate " << in.from << " " << in.to << "\n";
    }
}
