"""Variable-length histories: `Jagged` (packed rows + offsets) and `Padded` (a padded batch used without a copy)."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree
from torch.utils.data._utils.collate import default_collate_fn_map

from din_kernels import checks


class Jagged:
    """Packed rows of several users.

    Args:
        values: `[N, ...]`, the rows of all users one after the other.
        offsets: `[U + 1]`, int64 (int32 is converted); user u owns rows `offsets[u] : offsets[u + 1]`.

    Raises:
        TypeError: values or offsets is no tensor, or offsets is not an integer tensor.
        ValueError: offsets is not 1-D, does not start at 0, decreases, does not end at N, or is on another device.

    Example:
        >>> history = Jagged(torch.randn(5, 8), torch.tensor([0, 2, 2, 5]))
        >>> history.lengths().tolist()
        [2, 0, 3]
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: torch.Tensor, offsets: torch.Tensor):
        checks.is_tensor("values", values)
        if values.dim() < 1:
            raise ValueError("values must have shape [N, ...], got a scalar")
        check_offsets(offsets, values.shape[0], "values", values)
        self.values = values
        self.offsets = offsets if offsets.dtype == torch.int64 else offsets.to(torch.int64)

    @classmethod
    def _trusted(cls, values, offsets) -> Jagged:
        made = object.__new__(cls)
        made.values, made.offsets = values, offsets
        return made

    @property
    def num_rows(self) -> int:
        """N, the rows of all users together."""
        return self.values.shape[0]

    @property
    def batch_size(self) -> int:
        """U, the number of users."""
        return self.offsets.shape[0] - 1

    def __len__(self) -> int:
        return self.batch_size

    def __repr__(self) -> str:
        return f"Jagged(values={list(self.values.shape)} {self.values.dtype}, users={self.batch_size})"

    def lengths(self) -> torch.Tensor:
        """`[U]` int64, the number of rows of each user."""
        return self.offsets.diff()

    def to(self, *args, **kwargs) -> Jagged:
        """As `torch.Tensor.to`: a dtype applies to values alone, a device to both."""
        values = self.values.to(*args, **kwargs)
        return Jagged._trusted(values, self.offsets.to(values.device, non_blocking=non_blocking(args, kwargs)))

    def pin_memory(self) -> Jagged:
        """In pinned memory, for copies that do not wait; a DataLoader with pin_memory=True calls it."""
        return Jagged._trusted(self.values.pin_memory(), self.offsets.pin_memory())

    def __reduce__(self):
        return Jagged, (self.values, self.offsets)

    @classmethod
    def from_lengths(cls, values: torch.Tensor, lengths: torch.Tensor) -> Jagged:
        """From packed rows `[N, ...]` and `lengths [U]`."""
        checks.is_tensor("lengths", lengths, 1, "[U]")
        checks.is_index("lengths", lengths)
        return cls(values, torch.nn.functional.pad(lengths.to(torch.int64).cumsum(0), (1, 0)))

    @classmethod
    def from_padded(
        cls,
        padded: torch.Tensor,
        lengths: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        padding_side: str = "right",
    ) -> Jagged:
        """From `padded [B, T, ...]` and `lengths [B]` (padding on `padding_side`) or `mask [B, T]`, true if valid."""
        view = Padded(padded, lengths, mask, padding_side)
        valid = view.valid()
        return cls.from_lengths(padded[valid], valid.sum(1))

    def to_padded(
        self, max_length: int | None = None, padding_value: float = 0.0, padding_side: str = "right"
    ) -> torch.Tensor:
        """`[U, T, ...]` with T = `max_length` or the longest history; a longer history keeps its last T rows."""
        checks.one_of("padding_side", padding_side, ("right", "left"))
        lengths = self.lengths()
        longest = int(lengths.max()) if len(self) else 0
        if max_length is not None:
            checks.integer("max_length", max_length, at_least=0)
        if padding_value == padding_value:  # NaN is as good as any
            checks.number("padding_value", padding_value, infinite=True)
        width = longest if max_length is None else max_length
        user = torch.repeat_interleave(torch.arange(len(self), device=self.values.device), lengths)
        from_end = self.offsets[1:][user] - torch.arange(self.num_rows, device=self.values.device)  # 1 for the last row
        kept = from_end <= width
        column = width - from_end
        if padding_side == "right":
            column = column - (width - lengths.clamp(max=width))[user]
        shape = (len(self), width, *self.values.shape[1:])
        padded = self.values.new_full(shape, padding_value)
        return padded.index_put((user[kept], column[kept]), self.values[kept])

    @classmethod
    def from_nested(cls, nested: torch.Tensor) -> Jagged:
        """From a `torch.nested` tensor of layout `torch.jagged` `[B, ragged, ...]`."""
        if not (isinstance(nested, torch.Tensor) and nested.is_nested and nested.layout == torch.jagged):
            raise TypeError(f"nested must be a torch.nested tensor of layout torch.jagged, got {type(nested).__name__}")
        if nested.lengths() is not None:
            nested = nested.contiguous()
        return cls(nested.values(), nested.offsets())

    def to_nested(self) -> torch.Tensor:
        """A `torch.nested` tensor of layout `torch.jagged` over the same values."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets)


class Padded:
    """A padded batch of histories that kernels read in place, padding never touched.

    Args:
        values: `[B, T, ...]`.
        lengths: `[B]` integer, valid rows of each user on the side away from the padding; None with no mask: all T.
        mask: `[B, T]` bool, true where valid, in any arrangement; excludes `lengths`.
        padding_side: "right" or "left", where the padding lies when `lengths` is given.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device; both lengths and mask; a length outside 0..T.
    """

    __slots__ = ("lengths", "mask", "padding_side", "values")

    def __init__(
        self,
        values: torch.Tensor,
        lengths: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        padding_side: str = "right",
    ):
        checks.is_tensor("history", values)
        if values.dim() < 2:
            raise ValueError(f"history must have shape [B, T, ...], got {list(values.shape)}")
        checks.one_of("padding_side", padding_side, ("right", "left"))
        if lengths is not None and mask is not None:
            raise ValueError("lengths and mask exclude each other, got both")
        batch, width = values.shape[:2]
        if lengths is not None:
            checks.is_tensor("lengths", lengths, 1, "[B]")
            checks.is_index("lengths", lengths)
            checks.has_shape("lengths", lengths, (batch,), " (one per history)")
            checks.same_device("lengths", lengths, "history", values)
            if checks.values_readable(lengths) and batch and (int(lengths.min()) < 0 or int(lengths.max()) > width):
                got = f"{int(lengths.min())}..{int(lengths.max())}"
                raise ValueError(f"lengths must lie in 0..{width} (the padded length), got {got}")
        if mask is not None:
            checks.is_tensor("mask", mask, 2, "[B, T]")
            checks.is_mask("mask", mask)
            checks.has_shape("mask", mask, (batch, width), " (the history's batch and length)")
            checks.same_device("mask", mask, "history", values)
        self.values, self.lengths, self.mask, self.padding_side = values, lengths, mask, padding_side

    @classmethod
    def _trusted(cls, values, lengths, mask, padding_side) -> Padded:
        made = object.__new__(cls)
        made.values, made.lengths, made.mask, made.padding_side = values, lengths, mask, padding_side
        return made

    def __reduce__(self):
        return Padded, (self.values, self.lengths, self.mask, self.padding_side)

    def to(self, *args, **kwargs) -> Padded:
        """As `torch.Tensor.to`: a dtype applies to values alone, a device to all."""
        values = self.values.to(*args, **kwargs)
        move = {"device": values.device, "non_blocking": non_blocking(args, kwargs)}
        lengths, mask = (None if each is None else each.to(**move) for each in (self.lengths, self.mask))
        return Padded._trusted(values, lengths, mask, self.padding_side)

    def pin_memory(self) -> Padded:
        """In pinned memory, for copies that do not wait."""
        lengths, mask = (None if each is None else each.pin_memory() for each in (self.lengths, self.mask))
        return Padded._trusted(self.values.pin_memory(), lengths, mask, self.padding_side)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.values.shape[0]

    def __len__(self) -> int:
        return self.batch_size

    def valid(self) -> torch.Tensor:
        """`[B, T]` bool, true where valid."""
        if self.mask is not None:
            return self.mask
        batch, width = self.values.shape[:2]
        column = torch.arange(width, device=self.values.device)
        if self.lengths is None:
            return column.new_ones((batch, width), dtype=torch.bool)
        lengths = self.lengths[:, None]
        return column < lengths if self.padding_side == "right" else column >= width - lengths


def non_blocking(args: tuple, kwargs: dict) -> bool:
    """What the arguments of a `torch.Tensor.to` say: non_blocking is the first bool among those by position."""
    return kwargs.get("non_blocking", next((each for each in args if isinstance(each, bool)), False))


def register_batch_type(kind: type) -> None:
    """Lets torch.load(weights_only=True) make a `kind`, and default_collate say what to do with one."""
    torch.serialization.add_safe_globals([kind])
    default_collate_fn_map[kind] = _refuse_to_stack


def _refuse_to_stack(batch, *, collate_fn_map=None):
    name = type(batch[0]).__name__
    raise TypeError(
        f"default_collate does not stack {name}s, whose rows differ in number: let the dataset give each sample's ids, "
        "and pack them in a collate_fn: Jagged.from_lengths(torch.cat(ids), torch.tensor([len(each) for each in ids]))"
    )


def check_offsets(
    offsets: torch.Tensor, rows: int, owner_name: str, owner: torch.Tensor, name: str = "offsets"
) -> None:
    """Raises unless `offsets [U + 1]` cut `rows` rows, held by `owner`, into histories."""
    checks.is_tensor(name, offsets, 1, "[U + 1]")
    checks.is_index(name, offsets)
    checks.same_device(name, offsets, owner_name, owner)
    if offsets.shape[0] < 1:
        raise ValueError(f"{name} must have at least one entry (U + 1), got 0")
    if not checks.values_readable(offsets):
        return
    if offsets.shape[0] <= checks.FEW:
        numbers = offsets.tolist()
        if numbers[0] == 0 and numbers[-1] == rows and numbers == sorted(numbers):
            return
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0:
        raise ValueError(f"{name} must start at 0, got {first}")
    if bool((offsets[1:] < offsets[:-1]).any()):
        at = int((offsets[1:] < offsets[:-1]).nonzero()[0])
        got = f"{int(offsets[at])} then {int(offsets[at + 1])} at positions {at} and {at + 1}"
        raise ValueError(f"{name} must not decrease, got {got}")
    if last != rows:
        raise ValueError(f"{name} must end at the number of history rows ({rows}) in {owner_name}, got {last}")


pytree.register_pytree_node(
    Jagged,
    lambda jagged: ([jagged.values, jagged.offsets], None),
    lambda children, _: Jagged._trusted(*children),
    serialized_type_name="din_kernels.Jagged",
    flatten_with_keys_fn=lambda jagged: (
        [(pytree.GetAttrKey("values"), jagged.values), (pytree.GetAttrKey("offsets"), jagged.offsets)],
        None,
    ),
)
pytree.register_pytree_node(
    Padded,
    lambda padded: ([padded.values, padded.lengths, padded.mask], padded.padding_side),
    lambda children, side: Padded._trusted(*children, side),
    serialized_type_name="din_kernels.Padded",
    flatten_with_keys_fn=lambda padded: (
        [(pytree.GetAttrKey(name), getattr(padded, name)) for name in ("values", "lengths", "mask")],
        padded.padding_side,
    ),
)
register_batch_type(Jagged)
register_batch_type(Padded)
