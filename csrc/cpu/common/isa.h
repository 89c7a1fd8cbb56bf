// The instruction sets that kernels are compiled for, and the one that this process runs.
#pragma once

#include <vector>

namespace din_kernels::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

const char* isa_name(Isa isa);  // "baseline", "avx2", "avx512": the values of DIN_KERNELS_ISA

// Compiled into this build and able to run on this processor, widest last.
std::vector<Isa> supported_isas();

// The widest supported one, or the one that DIN_KERNELS_ISA names. Read once; throws std::runtime_error where the name
// is unknown, or this build or this processor lacks it.
Isa active_isa();

}  // namespace din_kernels::cpu
