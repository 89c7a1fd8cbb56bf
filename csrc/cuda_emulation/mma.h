// Warp-wide matrix operations with the fragment layouts of the PTX ISA ("Matrix Fragments for mma.m16n8k16",
// ".m16n8k8", "ldmatrix"), which say which lane holds which element in which register. Everything is computed from what
// the lanes bring.
#pragma once

#include <cstdint>
#include <cstring>

#include "keywords.h"

namespace din_kernels::emulation {

// 16-bit elements: two to a register, the lower half first.
//   A [16, 16]  register r, half h of a lane: row lane / 4 + 8 (r % 2),   column 2 (lane % 4) + h + 8 (r / 2)
//   B [16, 8]   register r, half h:           row 2 (lane % 4) + h + 8 r, column lane / 4
//   C [16, 8]   register r:                   row lane / 4 + 8 (r / 2),   column 2 (lane % 4) + r % 2
// 32-bit elements (tf32), one to a register:
//   A [16, 8]   register r: row lane / 4 + 8 (r % 2), column lane % 4 + 4 (r / 2)
//   B [8, 8]    register r: row lane % 4 + 4 r,       column lane / 4
template <int kRegisters>
struct Fragment {
    uint32_t registers[kRegisters];
};

struct Operands {
    Fragment<4> a;
    Fragment<2> b;
};

// d += a b, where a(row, k) and b(k, column) return floats from the lanes' registers. It adds in the order of k.
template <int kDepth, typename A, typename B>
void multiply(float (&d)[4], const A& a, const B& b) {
    for (int r = 0; r < 4; ++r) {
        const int row = lane() / 4 + 8 * (r / 2), column = 2 * (lane() % 4) + r % 2;
        for (int k = 0; k < kDepth; ++k) d[r] += a(row, k) * b(k, column);
    }
}

// D += A B. `widen` turns the 16 bits of an element into a float.
template <typename Widen>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line, const Widen& widen) {
    Operands mine;
    std::memcpy(mine.a.registers, a, sizeof(a));
    std::memcpy(mine.b.registers, b, sizeof(b));
    const unsigned char* left = exchange("mma.m16n8k16", line, ~0u, mine);
    const auto element = [&](uint32_t word, int half) { return widen(uint16_t(word >> (16 * half))); };
    multiply<16>(
        d,
        [&](int row, int k) {
            const Operands from = exchanged<Operands>(left, row % 8 * 4 + k % 8 / 2);
            return element(from.a.registers[row / 8 + 2 * (k / 8)], k % 2);
        },
        [&](int k, int column) {
            const Operands from = exchanged<Operands>(left, column * 4 + k % 8 / 2);
            return element(from.b.registers[k / 8], k % 2);
        });
}

// D += A B in tf32, which ignores the lower 13 bits of every element.
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
    Operands mine;
    std::memcpy(mine.a.registers, a, sizeof(a));
    std::memcpy(mine.b.registers, b, sizeof(b));
    const unsigned char* left = exchange("mma.m16n8k8.tf32", line, ~0u, mine);
    const auto widen = [](uint32_t word) {
        word &= ~0x1FFFu;
        float value;
        std::memcpy(&value, &word, sizeof(value));
        return value;
    };
    multiply<8>(
        d,
        [&](int row, int k) {
            return widen(exchanged<Operands>(left, row % 8 * 4 + k % 4).a.registers[row / 8 + 2 * (k / 4)]);
        },
        [&](int k, int column) { return widen(exchanged<Operands>(left, column * 4 + k % 4).b.registers[k / 4]); });
}

// Exchanges the offsets of ldmatrix's rows, lane by lane.
inline const unsigned char* exchange_rows(const char* operation, int line, uint32_t offset) {
    if (offset % 16) fault("ldmatrix row at byte " + std::to_string(offset) + " is not aligned to 16 bytes");
    if (offset + 16 > shared_size()) fault("ldmatrix row at byte " + std::to_string(offset) + " is out of bounds");
    return exchange(operation, line, ~0u, offset);
}

// Loads four 8 x 8 matrices of 16-bit elements from shared memory. Lane 8 m + i brings the byte offset of row i of
// matrix m; register m of a lane gets elements 2 (lane % 4) and the next of row lane / 4 of matrix m.
inline void ldmatrix_x4(uint32_t (&d)[4], uint32_t offset, int line) {
    const unsigned char* left = exchange_rows("ldmatrix.x4", line, offset);
    for (int m = 0; m < 4; ++m) {
        const uint32_t row = exchanged<uint32_t>(left, 8 * m + lane() / 4);
        std::memcpy(&d[m], shared_access(row + 4 * (lane() % 4), 4, Access::kRead), 4);
    }
}

// Loads each matrix transposed: register m gets element lane / 4 of rows 2 (lane % 4) and the next of matrix m.
inline void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t offset, int line) {
    const unsigned char* left = exchange_rows("ldmatrix.x4.trans", line, offset);
    for (int m = 0; m < 4; ++m) {
        uint16_t halves[2];
        for (int h = 0; h < 2; ++h) {
            const uint32_t row = exchanged<uint32_t>(left, 8 * m + 2 * (lane() % 4) + h);
            std::memcpy(&halves[h], shared_access(row + 2 * (lane() / 4), 2, Access::kRead), 2);
        }
        d[m] = uint32_t(halves[0]) | uint32_t(halves[1]) << 16;
    }
}

}  // namespace din_kernels::emulation
