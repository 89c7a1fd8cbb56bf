// din_kernels._cpu: the compiled core for CPUs, which knows neither torch nor NumPy.
#include <string>
#include <vector>

#include "bindings.h"
#include "common/buffer.h"
#include "common/isa.h"

PYBIND11_MODULE(_cpu, m) {
    using namespace din_kernels;
    m.def(
        "isa", [] { return cpu::isa_name(cpu::active_isa()); },
        "The instruction set that kernels run: DIN_KERNELS_ISA.");
    m.def(
        "supported_isas",
        [] {
            std::vector<std::string> names;
            for (const cpu::Isa isa : cpu::supported_isas()) names.push_back(cpu::isa_name(isa));
            return names;
        },
        "Instruction sets that this build and this processor have, widest last.");
    m.def("scratch_is_poisoned", cpu::scratch_is_poisoned,
          "Whether scratch memory holds signalling NaNs until a kernel writes it: in builds for sanitizers.");
    python::bind_dice(m);
    python::bind_local_activation(m);
    python::bind_mba_penalty(m);
    python::bind_sparse_update(m);
}
