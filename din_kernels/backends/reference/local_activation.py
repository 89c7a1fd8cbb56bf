"""The local activation unit (paper section 4.3, equation 3), features built literally on the valid pairs alone."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from din_kernels.backends.reference import dice as dice_reference


def features_of(q: torch.Tensor, k: torch.Tensor, features: str) -> torch.Tensor:
    """phi(q, k): the MLP's input for rows q [P, D] and k [P, D]."""
    if features == "concat":
        return torch.cat([q, k, q - k, q * k], -1)
    if features == "product":
        return torch.cat([q, k, q * k], -1)
    if features == "outer":
        return torch.cat([q, k, (q.unsqueeze(-1) * k.unsqueeze(-2)).flatten(-2)], -1)
    raise ValueError(f"features must be one of the sets above, got {features!r}")


def activate(z: torch.Tensor, activation: str, params: dict) -> tuple[torch.Tensor, tuple | None]:
    """Activation of z [P, H]; with Dice in training also the batch statistics (mean [H], var [H], count)."""
    if activation == "sigmoid":
        return torch.sigmoid(z), None
    if activation == "relu":
        return torch.relu(z), None
    if activation == "tanh":
        return torch.tanh(z), None
    if activation == "silu":
        return torch.nn.functional.silu(z), None  # z sigmoid(z)
    if activation == "prelu":
        return torch.where(z > 0, z, params["slope"].to(z.dtype) * z), None
    if activation == "dice":
        y, *statistics = dice_reference.dice(
            z, params["alpha"], params.get("mean"), params.get("var"), params["training"], params["eps"], None
        )
        return y, tuple(statistics) if params["training"] else None
    if activation == "identity":
        return z, None
    raise ValueError(f"activation must be one of the functions above, got {activation!r}")


def pair_index(begin, length, row_index, query_to_user, queries):
    """For every (candidate, behaviour) pair: candidate [P], position in the history [P], row of the history [P]."""
    user = torch.arange(queries, device=begin.device) if query_to_user is None else query_to_user
    per_query = length[user]
    candidate = torch.repeat_interleave(torch.arange(queries, device=begin.device), per_query)
    first = per_query.cumsum(0) - per_query
    position = torch.arange(candidate.shape[0], device=begin.device) - first[candidate]
    row = begin[user][candidate] + position
    return candidate, position, row if row_index is None else row_index[row]


def normalized(scores: torch.Tensor, candidate: torch.Tensor, queries: int, normalize: str) -> torch.Tensor:
    """w [P] from the scores [P] of pairs: themselves, or their softmax over the pairs of each candidate."""
    if normalize == "none":
        return scores
    top = scores.new_full((queries,), -torch.inf).scatter_reduce(0, candidate, scores.detach(), "amax")
    exp = torch.exp(scores - top[candidate])
    return exp / exp.new_zeros(queries).index_add(0, candidate, exp)[candidate]


def pool(
    w: torch.Tensor,  # [P]
    k: torch.Tensor,  # [P, D]
    candidate: torch.Tensor,  # [P]
    position: torch.Tensor,  # [P], in the history
    queries: int,
    pair_begin: torch.Tensor | None,  # [Q], where each candidate's weights start in pair_weights
    total_pairs: int,  # size of pair_weights
) -> tuple[torch.Tensor, torch.Tensor]:
    """pooled_i = sum_t w_it k_t, [Q, D]; and the weights by candidate, [total_pairs], 0 outside the pairs."""
    pooled = k.new_zeros(queries, k.shape[1]).index_add(0, candidate, w.unsqueeze(-1) * k)
    pair_weights = w.new_zeros(total_pairs)
    if pair_begin is not None:
        pair_weights = pair_weights.index_put((pair_begin[candidate] + position,), w)
    return pooled, pair_weights


def local_activation(
    query: torch.Tensor,  # [Q, D]
    rows: torch.Tensor,  # [M, D]
    begin: torch.Tensor,  # [U], first row of each user
    length: torch.Tensor,  # [U], number of its rows
    row_index: torch.Tensor | None,  # [capacity], rows in the order in which begin counts them
    row_mask: torch.Tensor | None,  # [M] bool, false: the row counts in Dice's statistics and nowhere else
    query_to_user: torch.Tensor | None,  # [Q], identity when None
    pair_begin: torch.Tensor | None,  # [Q], where each candidate's weights start in pair_weights
    total_pairs: int,  # size of pair_weights
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    params: list[dict],
    features: str,
    activation: str,
    normalize: str,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, list]:
    """Returns pooled [Q, D], pair_weights [total_pairs] (0 outside valid pairs), Dice statistics per hidden layer."""
    candidate, position, row = pair_index(begin, length, row_index, query_to_user, query.shape[0])
    k = rows[row]
    hidden = features_of(query[candidate], k, features)
    statistics = []
    weights, biases = ([tensor.to(query.dtype) for tensor in group] for group in (weights, biases))
    for weight, bias, layer in zip(weights[:-1], biases[:-1], params, strict=True):
        hidden, layer_statistics = activate(linear(hidden, weight, bias), activation, layer)
        statistics.append(layer_statistics)
    scores = scale * linear(hidden, weights[-1], biases[-1]).squeeze(-1)
    if row_mask is not None:
        valid = row_mask[row]
        candidate, position, k, scores = candidate[valid], position[valid], k[valid], scores[valid]
    w = normalized(scores, candidate, query.shape[0], normalize)
    return *pool(w, k, candidate, position, query.shape[0], pair_begin, total_pairs), statistics


def padded_unit(
    query: torch.Tensor,  # [B, D]
    history: torch.Tensor,  # [B, T, D]
    mask: torch.Tensor,  # [B, T] bool, true where valid
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    features: str = "concat",
    activation: str = "sigmoid",
    params: list[dict] | None = None,
    normalize: str = "none",
    scale: float = 1.0,
) -> torch.Tensor:
    """The padded unit as libraries write it, the peer of benchmarks: [B, T, 4D] features, the MLP on padding too."""
    hidden = features_of(query.unsqueeze(1).expand_as(history), history, features)
    for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        hidden, _ = activate(linear(hidden, weight, bias), activation, params[layer] if params else {})
    scores = scale * linear(hidden, weights[-1], biases[-1]).squeeze(-1)
    if normalize == "softmax":
        w = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1).nan_to_num(0.0)
    else:
        w = torch.where(mask, scores, 0.0)
    return torch.matmul(w.unsqueeze(1), history).squeeze(1)


def refuses(request) -> None:
    """The reference serves every request."""
