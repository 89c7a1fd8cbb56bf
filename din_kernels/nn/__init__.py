"""Modules."""

from din_kernels.nn.dice import Dice
from din_kernels.nn.local_activation import LocalActivationUnit

__all__ = ["Dice", "LocalActivationUnit"]
