// Compiled once per ISA; exports two tables and nothing else.
#include "local_activation_backward.h"
#include "local_activation_forward.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {

extern const Kernels<float> local_activation_float = {kLanes<float>, workspace_size<float>, forward_block<float>,
                                                      backward_block<float>};
extern const Kernels<double> local_activation_double = {kLanes<double>, workspace_size<double>, forward_block<double>,
                                                        backward_block<double>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
