"""`local_activation` in Triton."""

from din_kernels.backends.triton.local_activation.plan import refuses
from din_kernels.backends.triton.local_activation.run_backward import backward
from din_kernels.backends.triton.local_activation.run_forward import forward

__all__ = ["backward", "forward", "refuses"]
