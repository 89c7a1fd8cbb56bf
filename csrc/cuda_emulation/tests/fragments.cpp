// Runs one warp operation on fragments from standard input and writes its result, as 32-bit words in lane order:
//   mma_bf16, mma_fp16, mma_tf32: per lane 4 words of A, 2 of B, 4 of C  ->  4 of D
//   ldmatrix, ldmatrix_trans: 128 words of shared memory, per lane the index of its row  ->  4 of the fragment
//   multiply_bf16x2, multiply_fp16x2: per lane 2 words  ->  1
#include <cstdio>
#include <string>
#include <vector>

#include "common/accessors.cuh"
#include "common/launch.cuh"

using namespace din_kernels::cuda;

namespace {

enum Operation { kBf16, kFp16, kTf32 };

void mma(Global<const uint32_t> in, Global<uint32_t> out, Operation operation) {
    const int64_t lane = threadIdx.x;
    uint32_t a[4], b[2];
    float d[4];
    for (int r = 0; r < 4; ++r) a[r] = in[10 * lane + r];
    for (int r = 0; r < 2; ++r) b[r] = in[10 * lane + 4 + r];
    for (int r = 0; r < 4; ++r) d[r] = ptx::float_from_bits(in[10 * lane + 6 + r]);
    if (operation == kBf16) ptx::mma_bf16(d, a, b);
    if (operation == kFp16) ptx::mma_fp16(d, a, b);
    if (operation == kTf32) ptx::mma_tf32(d, a, b);
    for (int r = 0; r < 4; ++r) out.store(4 * lane + r, ptx::bits_from_float(d[r]));
}

void ldmatrix(Global<const uint32_t> in, Global<uint32_t> out, bool transposed) {
    const int64_t lane = threadIdx.x;
    const Shared<uint32_t> matrices(0, 128);
    for (int at = int(lane); at < 128; at += 32) matrices.store(at, in[at]);
    __syncthreads();
    uint32_t fragment[4];
    const uint32_t address = matrices.address_16(4 * int(in[128 + lane]));
    if (transposed)
        ptx::ldmatrix_x4_trans(fragment, address);
    else
        ptx::ldmatrix_x4(fragment, address);
    for (int r = 0; r < 4; ++r) out.store(4 * lane + r, fragment[r]);
}

void multiply(Global<const uint32_t> in, Global<uint32_t> out, bool bf16) {
    const int64_t lane = threadIdx.x;
    const uint32_t a = in[2 * lane], b = in[2 * lane + 1];
    out.store(lane, bf16 ? ptx::multiply_bf16x2(a, b) : ptx::multiply_fp16x2(a, b));
}

}  // namespace

int main(int, char** arguments) {
    const std::string name = arguments[1];
    const bool loads = name.rfind("ldmatrix", 0) == 0, multiplies = name.rfind("multiply", 0) == 0;
    std::vector<uint32_t> in(loads ? 160 : multiplies ? 64 : 320), out(multiplies ? 32 : 128);
    if (std::fread(in.data(), 4, in.size(), stdin) != in.size()) return 1;
    const Global<const uint32_t> from(in.data(), int64_t(in.size()));
    const Global<uint32_t> to(out.data(), int64_t(out.size()));
    if (loads) {
        launch("ldmatrix", ldmatrix, Grid{1}, 32, 512, nullptr, from, to, name == "ldmatrix_trans");
    } else if (multiplies) {
        launch("multiply", multiply, Grid{1}, 32, 0, nullptr, from, to, name == "multiply_bf16x2");
    } else {
        const Operation operation = name == "mma_bf16" ? kBf16 : name == "mma_fp16" ? kFp16 : kTf32;
        launch("mma", mma, Grid{1}, 32, 0, nullptr, from, to, operation);
    }
    std::fwrite(out.data(), 4, out.size(), stdout);
}
