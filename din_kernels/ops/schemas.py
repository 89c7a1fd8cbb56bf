"""Every op's schema on one screen. Dimensions as in docs/architecture.md; a backward kernel is an op of its own."""

from __future__ import annotations

import torch

library = torch.library.Library("din_kernels", "DEF")

# Rows [n, D] come as tables [V_k, D_k] and ids [n] each, their widths added up to D, or as one table and no ids: the
# query's [Q, D], and all behaviours' [M, D]. User u owns positions begin[u] : begin[u] + length[u] of them, or, with
# row_index [capacity], of row_index. Rows where row_mask [M] is false count in Dice's statistics and nowhere else.
# Weights of candidate i's pairs are written from pair_begin[i] on (None: not returned). params: slope per hidden layer
# (PReLU); alpha, mean, var (Dice), or alpha alone with dice_training, whose statistics [2, sum of hidden widths] are
# the batch means, then the biased variances ([2, 0] otherwise). logsumexp, pair_weights, statistics: fp32 at least.
_UNIT = (
    "Tensor[] query_tables, Tensor[] query_ids, Tensor[] row_tables, Tensor[] row_ids, Tensor begin, Tensor length, "
    "Tensor? row_index, Tensor? row_mask, Tensor? query_to_user, Tensor? pair_begin, SymInt total_pairs, "
    "Tensor[] weights, Tensor[] biases, Tensor[] params, float[] eps, bool dice_training, bool sparse_grad, "
    "str features, str activation, str normalize, float scale"
)

library.define(
    f"local_activation({_UNIT}, str backend) -> "
    "(Tensor pooled, Tensor logsumexp, Tensor pair_weights, Tensor statistics)"
)
# Gradients of tables are those of their rows, [n, D_k] each; the autograd formula makes them sparse or dense.
library.define(
    f"local_activation_backward(Tensor grad_pooled, Tensor? grad_pair_weights, {_UNIT}, Tensor pooled, "
    "Tensor logsumexp, Tensor pair_weights, Tensor statistics, bool need_query, bool need_rows, str backend) -> "
    "(Tensor[] grad_query, Tensor[] grad_rows, Tensor[] grad_weights, Tensor[] grad_biases, Tensor[] grad_params)"
)

# unique [N]: the batch's unique ids but padding_idx (-1: none) in ascending order, -1 behind their unique_count.
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

# x [N, C]; the others [C] in fp32 at least; mask [N]; mean and var are read in evaluation. count is 0-D.
_DICE = "Tensor x, Tensor alpha, Tensor? weight, Tensor? bias, "
_DICE_OPTIONS = "Tensor? mask, bool training, float eps, str backend"
library.define(
    f"dice({_DICE} Tensor? mean, Tensor? var, {_DICE_OPTIONS}) -> (Tensor y, Tensor mean, Tensor var, Tensor count)"
)
library.define(
    f"dice_backward(Tensor grad_y, {_DICE} Tensor mean, Tensor var, {_DICE_OPTIONS}) -> "
    "(Tensor grad_x, Tensor grad_alpha, Tensor grad_weight, Tensor grad_bias)"
)
