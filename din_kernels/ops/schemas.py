"""Every op's schema on one screen. Dimensions as in docs/architecture.md; a backward kernel is an op of its own.

An op takes the fields of its `<Op>Call` in `backends/calls.py`, then the backend's name. Its backward takes those of
`<Op>Grads` (the gradients with `grad_` before their names), of `<Op>Call`, and of `<Op>Saved` (`saved_` before theirs).
"""

from __future__ import annotations

import torch

library = torch.library.Library("din_kernels", "DEF")

# Rows [n, D] come as tables [V_k, D_k] and ids [n] each, their widths added up to D, or as one table and no ids: the
# query's [Q, D], and all behaviours' [M, D]. User u owns positions begin[u] : begin[u] + length[u] of them, or, with
# row_index [capacity], of row_index. Rows where row_mask [M] is false count in Dice's statistics and nowhere else.
# Weights of candidate i's pairs are written from pair_begin[i] on (None: not returned). params: slope per hidden layer
# (PReLU); alpha, mean, var (Dice), or alpha alone with dice_training, whose statistics [2, sum of hidden widths] are
# the batch means, then the biased variances ([2, 0] otherwise). pair_weights, statistics: fp32 at least; logsumexp:
# float64.
_UNIT = (
    "Tensor[] query_tables, Tensor[] query_ids, Tensor[] history_tables, Tensor[] history_ids, Tensor begin, "
    "Tensor length, Tensor? row_index, Tensor? row_mask, Tensor? query_to_user, Tensor? pair_begin, "
    "SymInt total_pairs, Tensor[] weights, Tensor[] biases, Tensor[] params, float[] eps, bool dice_training, "
    "bool sparse_grad, int[] query_padding, int[] history_padding, str features, str activation, str normalize, "
    "float scale"
)
library.define(
    f"local_activation({_UNIT}, str backend) -> "
    "(Tensor pooled, Tensor logsumexp, Tensor pair_weights, Tensor statistics)"
)
# Gradients of tables are those of their rows, [n, D_k] each; the autograd formula makes them sparse or dense.
library.define(
    "local_activation_backward(Tensor grad_pooled, Tensor? grad_pair_weights, bool need_query, bool need_history, "
    f"{_UNIT}, Tensor saved_pooled, Tensor saved_logsumexp, Tensor saved_pair_weights, Tensor saved_statistics, "
    "str backend) -> "
    "(Tensor[] query, Tensor[] history, Tensor[] weights, Tensor[] biases, Tensor[] params)"
)

# ids [n], rows [n, D]: the gradient [V, D] of a table of V = size rows, without entries of padding_idx (-1: none).
library.define("sparse_gradient(Tensor ids, Tensor rows, SymInt size, int padding_idx) -> Tensor")

# x [N, C]; the others [C] in fp32 at least; mask [N]; mean and var are read in evaluation. count is 0-D.
_DICE = (
    "Tensor x, Tensor alpha, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, Tensor? mask, bool training, "
    "float eps"
)
library.define(f"dice({_DICE}, str backend) -> (Tensor y, Tensor mean, Tensor var, Tensor count)")
library.define(
    f"dice_backward(Tensor grad_y, {_DICE}, Tensor saved_mean, Tensor saved_var, str backend) -> "
    "(Tensor x, Tensor alpha, Tensor weight, Tensor bias)"
)

# unique [N]: the batch's unique ids but padding_idx (-1: none) in ascending order, -1 behind their unique_count.
_PENALTY = "Tensor weight, Tensor ids, Tensor counts, float coeff, int padding_idx, bool sparse"
library.define(f"mba_penalty({_PENALTY}, str backend) -> (Tensor penalty, Tensor unique, Tensor unique_count)")
# Sparse: rows [entries, D] that belong to unique[:entries], zero behind their number; dense: [V, D].
library.define(
    f"mba_penalty_backward(Tensor grad_penalty, SymInt entries, {_PENALTY}, Tensor saved_unique, "
    "Tensor saved_unique_count, str backend) -> Tensor"
)

# One entry per table; states: those of the rule, table by table.
library.define(
    "sparse_update(Tensor(a!)[] weights, Tensor(b!)[] states, Tensor[] ids, Tensor[] grads, Tensor?[] counts, "
    "int[] padding_idx, float[] lr, float[] step, float[] beta1, float[] beta2, float[] eps, float[] coeff, "
    "bool[] maximize, bool[] decoupled, str rule, str backend) -> ()"
)
