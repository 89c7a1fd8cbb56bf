"""The first layer of outer features: A_i = Wk + sum_j q_ij Wo[:, j, :], made and taken apart outside of the kernels.

A is one product of [chunk, D] with [D, H1 * D], over a bounded chunk of candidates and never for all at once:

    candidates   | chunk 0           | chunk 1           | ...
    A            | [chunk, H1, D]    | [chunk, H1, D]    |        CHUNK_BYTES at most
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from din_kernels.backends.triton.local_activation.arguments import Inputs
from din_kernels.backends.triton.local_activation.inputs import Prepared, query_rows

CHUNK_BYTES = 64 * 2**20  # of A [chunk, H1, D]


class Chunk(NamedTuple):
    """Candidates first .. last."""

    first: int
    last: int
    inputs: Inputs  # for outer with their A [last - first, H1, D]


def weight_outer(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Wo as [D (of q), H1 * D (of k)]."""
    return weight[:, 2 * dim :].view(-1, dim, dim).transpose(0, 1).reshape(dim, -1)


def chunks(call: Prepared) -> Iterator[Chunk]:
    """All candidates, for outer chunk by chunk."""
    if call.features != "outer":
        yield Chunk(0, call.queries, call.inputs)
        return
    dim, width = call.unit.dim, call.unit.widths[0]
    weight = call.given.weights[0].to(call.dtype)
    by_query = weight_outer(weight, dim)
    weight_k = weight[:, dim : 2 * dim].reshape(-1)
    chunk = max(1, CHUNK_BYTES // (width * dim * call.dtype.itemsize))
    for first in range(0, max(call.queries, 1), chunk):
        last = min(first + chunk, call.queries)
        into = call.form.into
        folded = torch.addmm(weight_k, query_rows(call, first, last), by_query, beta=into, alpha=into)
        yield Chunk(first, last, call.inputs._replace(folded=folded.view(last - first, width, dim)))


class FirstLayerOfOuter:
    """Gradients through A, chunk by chunk: two products of the size of A's."""

    def __init__(self, call: Prepared):
        dim, width = call.unit.dim, call.unit.widths[0]
        self.call = call
        self.by_query = weight_outer(call.given.weights[0].float(), dim)
        self.weight_k = torch.zeros(width, dim, dtype=torch.float32, device=call.device)
        self.weight_outer = torch.zeros_like(self.by_query)

    def add(self, chunk: Chunk, grad: torch.Tensor, grad_query: torch.Tensor) -> None:
        """Adds a chunk's dA [last - first, H1, D] to the weights', and its part to grad_query [1, Q, D]."""
        first, last = chunk.first, chunk.last
        grad = grad * self.call.form.into
        flat = grad.view(last - first, -1)
        self.weight_k += grad.sum(0)
        self.weight_outer += query_rows(self.call, first, last).float().T @ flat
        grad_query[0, first:last] += flat @ self.by_query.T
