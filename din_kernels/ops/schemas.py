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

# unique [N]: the batch's unique ids but padding_idx (-1: none) in ascending order, -1 behind their number, unique_count.
library.define(
    "mba_penalty(Tensor weight, Tensor ids, Tensor counts, float coeff, int padding_idx, bool sparse, str backend) -> "
    "(Tensor penalty, Tensor unique, Tensor unique_count)"
)
# Sparse: rows [entries, D] that belong to unique[:entries], zero behind their number; dense: [V, D].
library.define(
    "mba_penalty_backward(Tensor grad, Tensor weight, Tensor unique, Tensor unique_count, Tensor counts, float coeff, "
    "SymInt entries, bool sparse, str backend) -> Tensor"
)

# One entry per table; states: those of the rule per table; hyper: the fields of sparse_update.Hyper per table.
library.define(
    "sparse_update(Tensor(a!)[] weights, Tensor(b!)[] states, Tensor[] ids, Tensor[] grads, Tensor?[] counts, "
    "int[] padding_idx, float[] hyper, str rule, str backend) -> ()"
)
