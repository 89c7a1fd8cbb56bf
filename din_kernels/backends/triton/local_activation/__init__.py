"""`local_activation` in Triton."""

from din_kernels.backends.triton.local_activation.run import backward, forward, refuses

__all__ = ["backward", "forward", "refuses"]
