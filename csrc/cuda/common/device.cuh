// CUDA, or with DIN_KERNELS_EMULATE its emulation on the CPU.
#pragma once

#ifdef DIN_KERNELS_EMULATE
#include "../../cuda_emulation/mma.h"
#else
#include <cuda_runtime.h>
#endif
