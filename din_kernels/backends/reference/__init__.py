"""The specification: short PyTorch that reads like the formulas, for any device and floating-point dtype."""


def unavailable() -> None:
    """The reference runs wherever torch does."""
