"""A compiled module: its functions are bound in csrc/python and take addresses and numbers."""

from typing import Any

def __getattr__(name: str) -> Any: ...
