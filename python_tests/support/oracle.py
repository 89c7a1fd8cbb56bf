"""NumPy float64 oracle of the mathematics, from the formulas alone: first layer folded, gradients by hand, no torch.

Notation as in docs/architecture.md. Pairs (candidate, behaviour) are the rows p of every array `[P, ...]`: all
behaviours of candidate 0, then those of candidate 1, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def phi(q, k, features):
    """The MLP's literal input for q `[D]`, k `[D]`: what folding never builds."""
    if features == "concat":
        return np.concatenate([q, k, q - k, q * k])
    if features == "product":
        return np.concatenate([q, k, q * k])
    return np.concatenate([q, k, np.outer(q, k).reshape(-1)])


def blocks(W1, dim, features):
    """W1 by feature block: Wq, Wk, Wd `[H1, D]` and Wp `[H1, D]`, or Wo `[H1, D (of q), D (of k)]`."""
    Wq, Wk = W1[:, :dim], W1[:, dim : 2 * dim]
    if features == "concat":
        return Wq, Wk, W1[:, 2 * dim : 3 * dim], W1[:, 3 * dim :]
    if features == "product":
        return Wq, Wk, np.zeros_like(Wq), W1[:, 2 * dim :]
    return Wq, Wk, np.zeros_like(Wq), W1[:, 2 * dim :].reshape(-1, dim, dim)


def fold(q, W1, b1, features):
    """A `[H1, D]` and c `[H1]` with z1 = A k + c for every behaviour k of this candidate."""
    Wq, Wk, Wd, Wp = blocks(W1, len(q), features)
    product = np.einsum("hjd,j->hd", Wp, q) if features == "outer" else Wp * q
    return Wk - Wd + product, (Wq + Wd) @ q + b1


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dice(s, alpha, mean, var, eps, training):
    """y of s `[P, C]`, and the mean and biased variance `[C]` that it used."""
    if training:
        rows = len(s)
        mean = s.sum(0) / rows if rows else np.zeros(s.shape[1])
        var = ((s - mean) ** 2).sum(0) / rows if rows else np.ones(s.shape[1])
    p = sigmoid((s - mean) / np.sqrt(var + eps))
    return s * (alpha + (1 - alpha) * p), mean, var


def dice_backward(dy, s, alpha, mean, var, eps, training):
    """ds `[P, C]` and dalpha `[C]`; x = (s - mean) r with r = 1 / sqrt(var + eps), mean and var functions of s."""
    r = 1 / np.sqrt(var + eps)
    x = (s - mean) * r
    p = sigmoid(x)
    dx = dy * s * (1 - alpha) * p * (1 - p)
    direct = dy * (alpha + (1 - alpha) * p)
    if training and len(s):
        dx = dx - dx.mean(0) - x * (dx * x).mean(0)
    return direct + dx * r, (dy * s * (1 - p)).sum(0)


def act(z, activation, params):
    """h of z `[P, H]`, and what the backward needs of Dice: the statistics used."""
    if activation == "dice":
        h, mean, var = dice(z, params["alpha"], params["mean"], params["var"], params["eps"], params["training"])
        return h, (mean, var)
    return {
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "silu": lambda z: z * sigmoid(z),
        "relu": lambda z: np.maximum(z, 0),
        "prelu": lambda z: np.where(z > 0, z, params["slope"] * z),
        "identity": lambda z: z,
    }[activation](z), None


def act_backward(dh, z, activation, params, used):
    """dz `[P, H]`, and the gradient of the activation's parameter (None where it has none)."""
    if activation == "dice":
        return dice_backward(dh, z, params["alpha"], *used, params["eps"], params["training"])
    if activation == "prelu":
        slope = (dh * np.where(z > 0, 0, z)).sum(0)
        return dh * np.where(z > 0, 1, params["slope"]), slope if params["slope"].size > 1 else slope.sum(keepdims=True)
    derivative = {
        "sigmoid": lambda: sigmoid(z) * (1 - sigmoid(z)),
        "tanh": lambda: 1 - np.tanh(z) ** 2,
        "silu": lambda: sigmoid(z) * (1 + z * (1 - sigmoid(z))),
        "relu": lambda: (z > 0).astype(float),
        "identity": lambda: np.ones_like(z),
    }[activation]
    return dh * derivative(), None


@dataclass
class Unit:
    """One call of the local activation unit. Lists of histories `[n_u, D]`; weights, biases, params one per layer."""

    query: np.ndarray  # [Q, D]
    histories: list[np.ndarray]
    weights: list[np.ndarray]
    biases: list[np.ndarray]
    params: list[dict]
    features: str
    activation: str
    normalize: str
    scale: float
    query_to_user: np.ndarray  # [Q]
    z: list[np.ndarray] = field(default_factory=list)
    used: list = field(default_factory=list)

    def __post_init__(self):
        lengths = [len(self.histories[u]) for u in self.query_to_user]
        ends = np.cumsum(lengths, dtype=int)
        self.pairs = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        self.folded = [fold(q, self.weights[0], self.biases[0], self.features) for q in self.query]

    def history(self, i):
        return self.histories[self.query_to_user[i]]

    def forward(self):
        """pooled `[Q, D]` and w `[P]`."""
        z = [self.history(i) @ A.T + c for i, (A, c) in enumerate(self.folded)]
        z = np.concatenate([*z, np.zeros((0, len(self.weights[0])))])
        for W, b, params in zip(self.weights[1:], self.biases[1:], self.params, strict=True):
            self.z.append(z)
            h, used = act(z, self.activation, params)
            self.used.append(used)
            z = h @ W.T + b
        s = self.scale * z[:, 0]
        self.w = np.concatenate([np.zeros(0), *(self.normalized(s[pairs]) for pairs in self.pairs)])
        rows = [self.w[pairs] @ self.history(i) for i, pairs in enumerate(self.pairs)]
        return np.array(rows).reshape(self.query.shape), self.w

    def normalized(self, s):
        if self.normalize == "none" or not len(s):
            return s
        e = np.exp(s - s.max())
        return e / e.sum()

    def backward(self, g, gw):
        """Gradients for g = dL/dpooled `[Q, D]`, gw = dL/dw `[P]`: query, histories, weights, biases, params."""
        dw = gw + np.concatenate([np.zeros(0), *(self.history(i) @ g[i] for i in range(len(g)))])
        ds = self.scale * dw
        if self.normalize == "softmax":
            for pairs in self.pairs:
                ds[pairs] = self.scale * self.w[pairs] * (dw[pairs] - self.w[pairs] @ dw[pairs])
        dz, dW, db, dparams = ds[:, None], [], [], []
        for layer in reversed(range(len(self.params))):
            z, params = self.z[layer], self.params[layer]
            h, _ = act(z, self.activation, params)
            dW, db = [dz.T @ h, *dW], [dz.sum(0), *db]
            dz, dparam = act_backward(dz @ self.weights[layer + 1], z, self.activation, params, self.used[layer])
            dparams = [dparam, *dparams]
        Wq, _, Wd, Wp = blocks(self.weights[0], self.query.shape[1], self.features)
        dWq, dWk, dWd, dWp = (np.zeros_like(each) for each in (Wq, Wq, Wd, Wp))
        dq, dk = np.zeros_like(self.query), [np.zeros_like(k) for k in self.histories]
        for i, (q, (A, _), pairs) in enumerate(zip(self.query, self.folded, self.pairs, strict=True)):
            k, dz1 = self.history(i), dz[pairs]
            dk[self.query_to_user[i]] += np.outer(self.w[pairs], g[i]) + dz1 @ A
            dA, dc = dz1.T @ k, dz1.sum(0)
            dWq += np.outer(dc, q)
            dWk += dA
            dWd += np.outer(dc, q) - dA
            dq[i] = (Wq + Wd).T @ dc
            if self.features == "outer":
                dWp += np.einsum("j,hd->hjd", q, dA)
                dq[i] += np.einsum("hjd,hd->j", Wp, dA)
            else:
                dWp += dA * q
                dq[i] += (Wp * dA).sum(0)
        middle = [dWd] if self.features == "concat" else []
        dW1 = np.concatenate([dWq, dWk, *middle, dWp.reshape(len(dWq), -1)], axis=1)
        return dq, dk, [dW1, *dW], [dz.sum(0), *db], dparams


def mba_penalty(weight, ids, counts, coeff, padding_idx):
    """(lambda / 2) sum over unique ids of ||w_j||^2 / n_j, and its gradient lambda w_j / n_j `[V, D]`."""
    penalty, grad = 0.0, np.zeros_like(weight)
    for j in sorted(set(ids.reshape(-1).tolist()) - {padding_idx}):
        n = max(counts[j], 1)
        penalty += coeff / 2 * sum(x * x for x in weight[j]) / n
        grad[j] = coeff * weight[j] / n
    return penalty, grad


def sparse_update(rule, weight, states, ids, grads, counts, padding_idx, h):
    """One step, row by row; returns new weight and states. h: lr, step (lr with the rule's corrections), betas, ..."""
    weight, states = weight.copy(), [state.copy() for state in states]
    for j in sorted(set(ids.tolist()) - {padding_idx}):
        g = sum(grad for grad, each in zip(grads, ids, strict=True) if each == j) * (-1 if h.maximize else 1)
        decay = 0 if counts is None else h.coeff / max(counts[j], 1)
        if h.decoupled:
            weight[j] -= h.lr * decay * weight[j]
        else:
            g = g + decay * weight[j]
        if rule == "sgd":
            step = g
        elif rule in ("momentum", "nesterov"):
            states[0][j] = h.beta1 * states[0][j] + g
            step = states[0][j] if rule == "momentum" else g + h.beta1 * states[0][j]
        elif rule == "adagrad":
            states[0][j] += g * g
            step = g / (np.sqrt(states[0][j]) + h.eps)
        elif rule == "rowwise_adagrad":
            states[0][j] += (g @ g) / len(g)
            step = g / (np.sqrt(states[0][j]) + h.eps)
        elif rule == "adam":
            states[0][j] = h.beta1 * states[0][j] + (1 - h.beta1) * g
            states[1][j] = h.beta2 * states[1][j] + (1 - h.beta2) * g * g
            step = states[0][j] / (np.sqrt(states[1][j]) + h.eps)
        weight[j] -= h.step * step
    return weight, states
