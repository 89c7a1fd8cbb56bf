"""Where a program's part of the weight gradients holds what, and the op's gradients made of these parts.

Every program of backward_kernel writes one row of `parts` [programs, size], fp32, which are then added in their order:

    | Wk' [H1, D] | Wp [H1, D] | w_last [H] | b_last | layer 0: sums | layer 1: W2 [H2, H1], b2 [H2], sums | ... |

Each field begins at a multiple of 16 bytes, so that it is stored four numbers at a time. `sums` [SUMS, H] are those of
the activation, see activations.SUMS. Outer has no Wk' and no Wp here: its A is made, and its gradient taken apart,
outside of the kernels (outer.py).
"""

from __future__ import annotations

import functools

import torch
import triton

from din_kernels.backends.calls import LocalActivationGradients, LocalActivationGrads
from din_kernels.backends.triton.local_activation.arguments import Layout, PartOfLayer
from din_kernels.backends.triton.local_activation.inputs import Prepared, query_rows
from din_kernels.backends.triton.local_activation.outer import FirstLayerOfOuter


@functools.lru_cache(maxsize=256)
def layout_of(dim: int, widths: tuple[int, ...], hidden: int, outer: bool, sums: int) -> Layout:
    """The layout for rows of D = `dim` and layers of `widths`; made once, since a launch of 10 us leaves no time."""
    size = 0

    def take(count: int) -> int:
        nonlocal size
        start = size
        size += triton.cdiv(count, 4) * 4
        return start

    first = 0 if outer else widths[0] * dim
    fields = {"weight_k": take(first), "weight_qk": take(first), "weight_last": take(widths[-1]), "bias_last": take(1)}
    layers = tuple(
        PartOfLayer(
            weight=take(widths[at] * widths[at - 1] if at else 0),
            bias=take(widths[at] if at else 0),
            sums=take(sums * widths[at]),
        )
        for at in range(hidden)
    )
    return Layout(size, **fields, layers=layers)


class Gradients:
    """The op's gradients from what the kernels left.

    Each is in the dtype of its input and a tensor of its own, since torch.compile takes them to share no memory and to
    begin at multiples of 16 bytes.
    """

    def __init__(self, call: Prepared, layout: Layout, sums: int, part: torch.Tensor):
        self.call, self.layout, self.sums = call, layout, sums
        self.part = part  # [size], added up over programs

    def _field(self, start: int, *sizes: int) -> torch.Tensor:
        count = 1
        for size in sizes:
            count *= size
        return self.part[start : start + count].view(sizes)

    def sums_of(self, layer: int) -> torch.Tensor:
        """The activation's sums over all pairs, [SUMS, H]."""
        return self._field(self.layout.layers[layer].sums, self.sums, self.call.unit.widths[layer])

    def _first_weight(self, grad_term: torch.Tensor, outer: FirstLayerOfOuter | None) -> torch.Tensor:
        """[H1, columns of the feature set]."""
        call, dim, width = self.call, self.call.unit.dim, self.call.unit.widths[0]
        weight_q = grad_term.T @ query_rows(call, 0, call.queries).float()
        if outer is not None:
            weight_outer = outer.weight_outer.view(dim, width, dim).transpose(0, 1).reshape(width, -1)
            return torch.cat([weight_q, outer.weight_k, weight_outer], 1)
        weight_k = self._field(self.layout.weight_k, width, dim)
        weight_qk = self._field(self.layout.weight_qk, width, dim)
        difference = [weight_q - weight_k] if call.features == "concat" else []
        return torch.cat([weight_q, weight_k, *difference, weight_qk], 1)

    def _params(self, layer: int) -> list[torch.Tensor]:
        """dslope; or dalpha and, of given statistics, dmean and dvar."""
        names, params, sums = self.call.given.param_names, self.call.given.params_of(layer), self.sums_of(layer)
        found = list(sums[: len(params)])
        if "var" in names:
            # Both statistics flow through zhat = (z - mean) / sqrt(var + eps): sums of g, and of g zhat.
            inverse = self.call.inputs.mlp.params[layer][names.index("var")]
            found[names.index("mean")] = -sums[1] * inverse
            found[names.index("var")] = -0.5 * sums[2] * inverse.square()
        return [g if p.numel() > 1 else g.sum(0, keepdim=True) for g, p in zip(found, params, strict=True)]

    def all(
        self,
        grads: LocalActivationGrads,
        grad_query: torch.Tensor,  # [Q, D] fp32, the part through A
        grad_term: torch.Tensor,  # [Q, H1] fp32
        grad_history: tuple[torch.Tensor, ...],  # [M, D_k] each
        outer: FirstLayerOfOuter | None,
    ) -> LocalActivationGradients:
        """What the op's backward returns."""
        call, layout, widths = self.call, self.layout, self.call.unit.widths
        weights, biases, params = [self._first_weight(grad_term, outer)], [grad_term.sum(0)], []
        for layer, at in enumerate(layout.layers):
            if layer:
                weights.append(self._field(at.weight, widths[layer], widths[layer - 1]))
                biases.append(self._field(at.bias, widths[layer]))
            params += self._params(layer)
        if layout.layers:
            weights.append(self._field(layout.weight_last, 1, widths[-1]))
            biases.append(self._field(layout.bias_last, 1))
        tables = [table.shape[1] for table in call.inputs.query.tables]
        if grads.need_query:
            grad_query = grad_query.addmm(grad_term, call.weight_q.float())
            query = [g.to(call.dtype).contiguous() for g in grad_query.split(tables, 1)]
        else:
            query = [grad_query.new_empty(0, dtype=call.dtype) for _ in tables]
        history = [g.to(call.dtype) for g in grad_history]

        def owned(made, like):
            return [g.to(own.dtype, copy=True) for g, own in zip(made, like, strict=True)]

        given = call.given
        return LocalActivationGradients(
            query, history, owned(weights, given.weights), owned(biases, given.biases), owned(params, given.params)
        )
