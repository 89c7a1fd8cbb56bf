"""The local activation unit (paper section 4.3) as a torch op: `attend` for modules, `local_activation` for users."""

from din_kernels.ops.local_activation.attend import (
    ACTIVATIONS,
    FEATURES,
    NORMALIZATIONS,
    STATISTICS,
    Attended,
    attend,
    feature_width,
    local_activation,
)

__all__ = [
    "ACTIVATIONS",
    "FEATURES",
    "NORMALIZATIONS",
    "STATISTICS",
    "Attended",
    "attend",
    "feature_width",
    "local_activation",
]
