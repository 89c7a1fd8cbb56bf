"""The local activation unit (paper section 4.3) as a torch op: `attend` for modules, `local_activation` for users."""

from din_kernels import options
from din_kernels.ops.local_activation.attend import Attended, attend, local_activation
from din_kernels.options import NORMALIZATIONS, STATISTICS, feature_width

# The names alone; what belongs to each stands in `options`.
ACTIVATIONS, FEATURES = tuple(options.ACTIVATIONS), tuple(options.FEATURES)

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
