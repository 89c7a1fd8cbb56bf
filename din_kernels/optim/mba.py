"""Mini-batch aware regularization of a parameter group, and the counts n_j that it divides by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from din_kernels import checks
from din_kernels.jagged import Jagged, check_offsets

COUNTS = ("samples", "occurrences")

# float16 and bfloat16 hold no large counts; bool and float8 hold none.
_COUNT_DTYPES = (
    *(torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


class MBACounts:
    """n_j of every id of one table: how many training samples hold id j.

    A sample is what the loss sums over: a positive and its negative are two, each with the history it shares. An id
    that no sample held has 0 here and is regularized as if it had 1: a batch that brings it is a sample of it.

    Args:
        values: `[V]` tensor of integers, float32 or float64. int64 and float64 tensors are kept, and `observe` updates
            them in place; other integers are copied to int64, and float32 to float64, since narrow counts wrap around
            (int16 at 32,767) or stop growing (float32 at 2^24).
        count: "samples" counts a sample once per id that appears in it, in any field that shares the table (the paper's
            I(x_j != 0)); "occurrences" counts every appearance.

    `observe` refuses counts that are an inference tensor outside of `torch.inference_mode`, where torch changes none.

    Raises:
        TypeError, ValueError: values is no 1-D tensor, holds a count that is negative or not finite, or count is
            unknown.

    Example:
        >>> counts = MBACounts.zeros(5)
        >>> counts.observe(torch.tensor([1, 1, 3, 1]), torch.tensor([0, 3, 4]))  # samples {1, 3} and {1}
        >>> counts.values.tolist()
        [0, 2, 0, 1, 0]
    """

    def __init__(self, values: torch.Tensor, count: str = "samples"):
        checks.is_tensor("counts", values, 1, "[V]")
        checks.one_of("count", count, COUNTS)
        if values.dtype not in _COUNT_DTYPES:
            raise TypeError(f"counts must be integers, float32 or float64, got {values.dtype}")
        self.values = values.to(torch.float64 if values.is_floating_point() else torch.int64)
        _check_counts(self.values)
        self.count = count
        self._checked = self._version()

    def _version(self) -> int | None:
        """Changes whenever the values do; None where torch does not count changes."""
        return None if self.values.is_inference() else self.values._version

    def check(self) -> None:
        """ValueError where someone has written a count that is negative or not finite; looks only after a change."""
        version = self._version()
        if version is None or version != self._checked:
            _check_counts(self.values)
            self._checked = version

    @classmethod
    def zeros(cls, rows: int, count: str = "samples", device=None) -> MBACounts:
        """Of a table with `rows` rows, before any sample."""
        checks.size("rows", rows, at_least=0)
        checks.device("device", device)
        return cls(torch.zeros(rows, dtype=torch.int64, device=device), count)

    @classmethod
    def from_samples(cls, samples: Iterable[Any], rows: int, count: str = "samples") -> MBACounts:
        """Counted over the whole training data, batch by batch.

        Args:
            samples: batches, each as `observe` takes its `ids`.
            rows: V, rows of the table.
            count: "samples" or "occurrences".
        """
        counts = cls.zeros(rows, count)
        for ids in samples:
            counts.observe(ids)
        return counts

    def observe(
        self,
        ids: torch.Tensor | Jagged | Sequence[torch.Tensor | Jagged],
        sample_offsets: torch.Tensor | None = None,
    ) -> None:
        """Adds one batch of samples.

        Args:
            ids: `[S, ...]` integer tensor whose row i is sample i; a Jagged of S rows; a list of such fields that share
                the table; or, with sample_offsets, `[N]` packed.
            sample_offsets: `[S + 1]`, sample i owns `ids[sample_offsets[i] : sample_offsets[i + 1]]`.

        Raises:
            TypeError, ValueError, IndexError: naming the argument, what was expected and what came; nothing is counted.
        """
        checks.is_writable("counts", self.values)
        if self.values.device.type == "meta":
            raise TypeError("counts must have values that observe can add to, got a tensor on the meta device")
        if sample_offsets is not None:
            checks.is_tensor("ids", ids, 1, "[N] with sample_offsets")
            check_offsets(sample_offsets, ids.shape[0], "ids", ids, "sample_offsets")
            ids = Jagged(ids, sample_offsets)
        fields = ids if isinstance(ids, (list, tuple)) else [ids]
        pairs = [_by_sample(field, self.values) for field in fields]
        if len({size for _, _, size in pairs}) > 1:
            sizes = ", ".join(str(size) for _, _, size in pairs)
            raise ValueError(f"ids must hold the same samples in every field, got {sizes} samples")
        rows = self.values.shape[0]
        sample = torch.cat([each for each, _, _ in pairs]) if pairs else torch.empty(0, dtype=torch.int64)
        flat = torch.cat([each for _, each, _ in pairs]) if pairs else sample
        if not flat.numel():
            return
        checks.ids_within("ids", flat, rows, "rows of counts")
        if self.count == "samples":
            flat = torch.unique(sample * rows + flat) % rows
        self.check()
        self.values.index_add_(0, flat, self.values.new_ones(()).expand(flat.shape))
        self._checked = self._version()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: plain tensors and strings."""
        return {"values": self.values, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the counts in place.

        Raises:
            TypeError, ValueError: counts of another table size, counted otherwise, negative, not real, without values,
                or fractional where these are whole. They are as before then.
        """
        self._check_state(state)
        self.values.copy_(state["values"])
        self._checked = self._version()

    def _check_state(self, state: dict[str, Any]) -> None:
        """TypeError or ValueError where `load_state_dict` cannot take it."""
        _check_entries("counts", state, ("values", "count"))
        values = state["values"]
        checks.is_tensor("counts", values, 1, "[V]")
        checks.is_real("counts", values)
        checks.has_shape("counts", values, tuple(self.values.shape), " (rows of the table)")
        if values.device.type == "meta" and self.values.device.type != "meta":
            raise TypeError("counts must have values, got a tensor on the meta device")
        if state["count"] != self.count:
            raise ValueError(f"count must be {self.count!r}, got {state['count']!r}")
        _check_counts(values)
        whole = not self.values.is_floating_point() and values.is_floating_point()
        if whole and checks.values_readable(values) and bool((values != values.floor()).any()):
            raise ValueError(
                f"counts must be whole numbers, as those they are loaded into, got {values.dtype} fractions"
            )

    def __repr__(self) -> str:
        return f"MBACounts(rows={self.values.shape[0]}, count={self.count!r})"


def _check_entries(name: str, state, entries: tuple[str, ...]) -> None:
    """TypeError or ValueError unless a state to load is a dict with these entries."""
    checks.is_mapping(name, state, "saved entries")
    for entry in entries:
        if entry not in state:
            raise ValueError(f"{name} must hold {entry!r}, got {', '.join(map(repr, state)) or 'none'}")


def _check_counts(values: torch.Tensor) -> None:
    if checks.values_readable(values) and values.numel():
        low = values.min().item()
        if not low >= 0:
            raise ValueError(f"counts must be at least 0, got {low}")
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise ValueError("counts must be finite, got inf")


def _by_sample(field, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A field as (sample of each id, id), both `[n]` int64 on the device of the counts, and the number of samples."""
    if isinstance(field, Jagged):
        checks.is_index("ids", field.values)
        checks.same_device("ids", field.values, "counts", counts)
        sample = torch.repeat_interleave(torch.arange(len(field), device=field.values.device), field.lengths())
        return sample, field.values.to(torch.int64), len(field)
    checks.is_tensor("ids", field)
    checks.is_index("ids", field)
    checks.same_device("ids", field, "counts", counts)
    if not field.dim():
        raise ValueError("ids must have shape [S, ...], got a scalar")
    sample = torch.arange(field.shape[0], device=field.device)
    per_sample = field.numel() // max(field.shape[0], 1)
    return sample.repeat_interleave(per_sample), field.reshape(-1).to(torch.int64), field.shape[0]


class MBA:
    """Mini-batch aware regularization (paper section 5.1, equation 6) of a parameter group.

    In every step, coeff * w_j / n_j joins the gradient of each id j of the batch, once however often j appears, before
    the optimizer's states see it. With `decoupled`, the weights shrink by lr * coeff * w_j / n_j beside the step
    instead, as AdamW decays, so that the decay is not scaled by Adagrad's or Adam's own rates. For SGD both are one.

    Args:
        coeff: the paper's lambda, at least 0.
        counts: `[V]` tensor or `MBACounts`, n_j per row of the group's table. In a step n_j = 0 counts as 1: an id that
            the counted data never held, as new ids of a stream and held-out ones, is in one sample at least, that of
            this batch. Negative counts, NaN and infinity are refused.
        padding_idx: a row that the step never touches, neither by gradients nor by regularization. Libraries often
            have a row 0 that is padding without saying so.
        decoupled: see above.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, what was expected and what came.

    Example:
        >>> table = torch.nn.Embedding(100, 8, sparse=True)
        >>> mba = MBA(coeff=0.01, counts=MBACounts.zeros(100), padding_idx=0)
        >>> optimizer = SparseAdagrad([{"params": [table.weight], "mba": mba}], lr=0.01)
        >>> ids = torch.tensor([[3, 3, 4], [4, 5, 6]])
        >>> table(ids).sum().backward()
        >>> mba.observe(ids)  # online counting: before the step
        >>> optimizer.step()
    """

    def __init__(
        self, coeff: float, counts: torch.Tensor | MBACounts, padding_idx: int | None = None, decoupled: bool = False
    ):
        self.counts = counts if isinstance(counts, MBACounts) else MBACounts(counts)
        self._set(coeff, padding_idx, decoupled)

    def _set(self, coeff: float, padding_idx: int | None, decoupled: bool) -> None:
        self._check_settings(coeff, padding_idx, decoupled)
        self.coeff, self.padding_idx, self.decoupled = float(coeff), padding_idx, decoupled

    def _check_settings(self, coeff, padding_idx, decoupled) -> None:
        checks.number("coeff", coeff, at_least=0)
        checks.row_of("padding_idx", padding_idx, self.counts.values.shape[0], "rows of counts")
        checks.flag("decoupled", decoupled)

    def observe(self, ids, sample_offsets=None) -> None:
        """Counts a batch of samples, before the step that trains on it; see `MBACounts.observe`."""
        self.counts.observe(ids, sample_offsets)

    def state_dict(self) -> dict[str, Any]:
        """Settings and counts, as plain values and tensors."""
        settings = {"coeff": self.coeff, "padding_idx": self.padding_idx, "decoupled": self.decoupled}
        return settings | {"counts": self.counts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores settings, and counts in place.

        Raises:
            TypeError, ValueError, IndexError: a setting or the counts, by name. All is as before then.
        """
        self.check_state(state)
        self.counts.load_state_dict(state["counts"])
        self._set(state["coeff"], state["padding_idx"], state["decoupled"])

    def check_state(self, state: dict[str, Any]) -> None:
        """TypeError, ValueError or IndexError where `load_state_dict` cannot take it."""
        _check_entries("mba", state, ("coeff", "padding_idx", "decoupled", "counts"))
        self.counts._check_state(state["counts"])
        self._check_settings(state["coeff"], state["padding_idx"], state["decoupled"])

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> MBA:
        """A new one from `state_dict()`."""
        _check_entries("mba", state, ("coeff", "padding_idx", "decoupled", "counts"))
        _check_entries("counts", state["counts"], ("values", "count"))
        checks.is_tensor("counts", state["counts"]["values"], 1, "[V]")
        counts = MBACounts(state["counts"]["values"].clone(), state["counts"]["count"])
        return cls(state["coeff"], counts, state["padding_idx"], state["decoupled"])

    def __repr__(self) -> str:
        decoupled = ", decoupled=True" if self.decoupled else ""
        return f"MBA(coeff={self.coeff}, counts={self.counts}, padding_idx={self.padding_idx}{decoupled})"
