"""`local_activation` in Triton."""

from din_kernels.backends.triton.local_activation.plan import refuses
from din_kernels.backends.triton.local_activation.run import backward, forward

__all__ = ["backward", "forward", "refuses"]
