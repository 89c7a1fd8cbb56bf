"""Every op's schema on one screen. Dimensions as in docs/architecture.md; a backward kernel is an op of its own."""

from __future__ import annotations

import torch

library = torch.library.Library("din_kernels", "DEF")

# rows [M, D] are all behaviours; user u owns positions begin[u] : begin[u] + length[u] of them, or, with row_index
# [capacity], of row_index. Weights of candidate i's pairs are written from pair_begin[i] on (None: not returned).
_UNIT = (
    "Tensor query, Tensor rows, Tensor begin, Tensor length, Tensor? row_index, Tensor? query_to_user, "
    "Tensor? pair_begin, SymInt total_pairs, Tensor[] weights, Tensor[] biases, Tensor[] params, float[] eps, "
    "str features, str activation, str normalize, float scale"
)

library.define(f"local_activation({_UNIT}, str backend) -> (Tensor pooled, Tensor logsumexp, Tensor pair_weights)")
library.define(
    f"local_activation_backward(Tensor grad_pooled, Tensor? grad_pair_weights, {_UNIT}, "
    "Tensor pooled, Tensor logsumexp, Tensor pair_weights, bool need_query, bool need_rows, str backend) -> "
    "(Tensor grad_query, Tensor grad_rows, Tensor[] grad_weights, Tensor[] grad_biases, Tensor[] grad_params)"
)
