#include "common/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace din_kernels::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};

// DIN_KERNELS_HAVE_<ISA> is defined by the build for each ISA that its kernels were compiled for.
bool compiled(Isa isa) {
    switch (isa) {
        case Isa::kBaseline:
            return true;
        case Isa::kAvx2:
#ifdef DIN_KERNELS_HAVE_AVX2
            return true;
#else
            return false;
#endif
        case Isa::kAvx512:
#ifdef DIN_KERNELS_HAVE_AVX512
            return true;
#else
            return false;
#endif
    }
    return false;
}

#if defined(__x86_64__)
// Not every compiler's builtin knows this one; a virtual machine may hide it from a processor that has AVX2.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

// The same sets as the compiler flags in CMakeLists.txt. The builtin also asks the operating system whether it saves
// the registers.
bool runs_here(Isa isa) {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    switch (isa) {
        case Isa::kBaseline:
            return true;
        case Isa::kAvx2:
            return avx2;
        case Isa::kAvx512:
            return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    return false;
#else
    return isa == Isa::kBaseline;
#endif
}

std::string names(const std::vector<Isa>& isas) {
    std::string text;
    for (const Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
    return text;
}

Isa choose() {
    const std::vector<Isa> supported = supported_isas();
    const char* forced = std::getenv("DIN_KERNELS_ISA");
    if (!forced || !*forced) return supported.back();
    for (const Isa isa : kAll) {
        if (forced != std::string(isa_name(isa))) continue;
        const char* lacking = !compiled(isa) ? "this build" : !runs_here(isa) ? "this processor" : nullptr;
        if (!lacking) return isa;
        throw std::runtime_error("DIN_KERNELS_ISA must be one of " + names(supported) + " here, got " + forced +
                                 ", which " + lacking + " lacks");
    }
    throw std::runtime_error("DIN_KERNELS_ISA must be one of " + names({std::begin(kAll), std::end(kAll)}) + ", got " +
                             forced);
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::kBaseline:
            return "baseline";
        case Isa::kAvx2:
            return "avx2";
        case Isa::kAvx512:
            return "avx512";
    }
    return "";
}

std::vector<Isa> supported_isas() {
    std::vector<Isa> isas;
    for (const Isa isa : kAll)
        if (compiled(isa) && runs_here(isa)) isas.push_back(isa);
    return isas;
}

Isa active_isa() {
    static const Isa isa = choose();
    return isa;
}

}  // namespace din_kernels::cpu
