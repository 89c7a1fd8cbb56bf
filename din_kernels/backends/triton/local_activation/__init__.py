"""`local_activation` in Triton."""

from din_kernels.backends.calls import LocalActivationGradients, LocalActivationResult
from din_kernels.backends.triton.local_activation import run
from din_kernels.backends.triton.local_activation.run import refuses

__all__ = ["backward", "forward", "refuses"]


def forward(call):
    """Kernel calls of the op's forward."""
    result = LocalActivationResult(*run.forward(*call))
    return result._replace(logsumexp=result.logsumexp.double())


def backward(call, saved, grads):
    """Kernel calls of the op's backward."""
    saved = saved._replace(logsumexp=saved.logsumexp.float())
    towards = (grads.pooled, grads.pair_weights)
    return LocalActivationGradients(*run.backward(*towards, *call, *saved, grads.need_query, grads.need_history))
