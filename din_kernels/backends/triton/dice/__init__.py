"""`dice` in Triton."""

from din_kernels.backends.triton.dice.run import backward, forward, refuses

__all__ = ["backward", "forward", "refuses"]
