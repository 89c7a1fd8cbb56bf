"""`local_activation` in Triton, backward: tensors to launches.

    row_gradients_kernel     dk, and per place of a chunk dz and h of every layer
    first_layer_kernel       dWk', dWp', dc and the part of dq through A
    upper_layers_kernel      gradients of the layers above
    query_gradients_kernel   dq, dWq', db1'
    finish_kernel            programs' parts added up into the op's results

All pairs have places, candidate by candidate. The first three kernels take them chunk by chunk, so that what goes
between them needs memory that does not grow with the batch. For outer, whose candidates come in chunks already, and
where candidates that share a history must add to its rows in order, each of the three goes down its tiles itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from din_kernels.backends.calls import (
    LocalActivationCall,
    LocalActivationGradients,
    LocalActivationGrads,
    LocalActivationResult,
)
from din_kernels.backends.triton import cdiv, chips, on_device_of
from din_kernels.backends.triton.activations import SUMS
from din_kernels.backends.triton.launch import launch
from din_kernels.backends.triton.local_activation.arguments import FirstGrads, Given, Order, Pass, Room
from din_kernels.backends.triton.local_activation.first_layer import first_layer_kernel
from din_kernels.backends.triton.local_activation.inputs import inverse_deviation, make_weights, prepare
from din_kernels.backends.triton.local_activation.memory import FIRST, ROWS, TERM_ROWS, UPPER
from din_kernels.backends.triton.local_activation.outer import Chunk, FirstLayerOfOuter, chunks
from din_kernels.backends.triton.local_activation.places import (
    Sums,
    columns_apart,
    in_blocks,
    room_places,
    sums_places,
    upper_places,
)
from din_kernels.backends.triton.local_activation.plan import plan
from din_kernels.backends.triton.local_activation.queries import finish_blocks, finish_kernel, query_gradients_kernel
from din_kernels.backends.triton.local_activation.row_gradients import row_gradients_kernel
from din_kernels.backends.triton.local_activation.upper_layers import upper_layers_kernel

END = 2**62  # beyond every position
NO_ROOM = Room(None, None, None, None)
FINISH_BLOCK, FINISH_EACH = 64, 16


def _by_user(query_to_user: torch.Tensor, chunk: Chunk, programs: int) -> Order:
    """A chunk's candidates by user, and where each program begins: no user is in two of them."""
    first, last = chunk.first, chunk.last
    users, order = torch.sort(query_to_user[first:last], stable=True)
    even = torch.arange(programs, device=users.device) * (last - first) // programs
    bounds = torch.searchsorted(users, users[even])
    return Order(order, torch.cat([bounds, torch.full((1,), last - first, device=users.device)]))


def _shared(given: LocalActivationCall, need_history: bool) -> str:
    """How candidates that share a history add to the same rows: atomically, or one by one in a fixed order when asked
    for."""
    if given.query_to_user is None or not need_history:
        return "none"
    return "ordered" if torch.are_deterministic_algorithms_enabled() else "atomic"


def places_that_fit(chip: str, line: int) -> int:
    """Places of a chunk, each of which leaves `line` bytes."""
    return chips.configuration("local_activation", chip)["room_bytes"] // line


class _Backward:
    """The launches of one backward and what they write."""

    def __init__(self, given: LocalActivationCall, saved: LocalActivationResult, grads: LocalActivationGrads):
        call = self.call = prepare(given)
        unit = call.unit
        shared, self.outer = _shared(given, grads.need_history), None
        if given.features == "outer":
            self.outer = FirstLayerOfOuter(call)
        splits = self.outer is None
        ordered = shared == "ordered"
        self.rows = plan(call, ROWS, splits=splits and not ordered, single=ordered)
        self.first, self.upper = plan(call, FIRST, splits), plan(call, UPPER, splits)
        self.sums = SUMS.get(given.activation, 0)
        at, size = sums_places(unit.widths, unit.hidden, self.sums)
        places = room_places(unit.widths, unit.hidden)
        self.made = Pass(given.normalize == "softmax", -1, self.sums, at, size, places, shared)
        weights = grads.pair_weights if given.total_pairs else None
        self.given = Given(
            grad_pooled=grads.pooled.contiguous(),
            grad_pair_weights=None if weights is None else weights.contiguous(),
            pooled=saved.pooled,
            logsumexp=saved.logsumexp,
            # Without gradients of the weights a pointer that is not followed.
            pair_begin=given.begin if given.pair_begin is None else given.pair_begin,
            pair_weights=saved.pair_weights,
        )
        self.wide = {"dtype": torch.float32, "device": call.device}
        self.need_history = grads.need_history
        self.history = self._room_for_history(shared) if grads.need_history else ()
        self.query = torch.empty(self.first.splits, call.queries, unit.dim, **self.wide)
        self.term = torch.empty(self.first.splits, call.queries, unit.widths[0], **self.wide)
        self.chunked = self.outer is None and not ordered
        if self.chunked and given.query_to_user is not None:
            length = given.length[given.query_to_user]
            self.call = call.with_places(length.cumsum(0) - length)

    def _room_for_history(self, shared: str) -> tuple[torch.Tensor, ...]:
        """Per table the gradient of its rows: fp32 zeros where candidates add to it. The kernel writes all other rows,
        those of no candidate included, unless an index says where they are."""
        call = self.call
        dtype = call.dtype if shared == "none" else torch.float32
        partial = shared != "none" or call.given.query_to_user is not None or call.given.row_index is not None
        make = torch.zeros if partial or not call.queries else torch.empty
        return tuple(
            make(call.rows, table.shape[1], dtype=dtype, device=call.device) for table in call.inputs.history.tables
        )

    def _borders(self, chunks: int, size: int) -> torch.Tensor:
        """Room.chunk of each chunk of `size` places, [chunks, 4]; the last goes past the end of all."""
        call, where = self.call, self.call.inputs.where
        found = torch.zeros(chunks, 4, dtype=torch.int64, device=call.device)
        found[-1, 1], found[-1, 3] = call.queries, END
        if chunks > 1:
            place = where.begin if where.place is None else where.place
            borders = torch.arange(1, chunks, device=call.device) * size
            found[:-1, 1], found[:-1, 3], found[1:, 2] = torch.searchsorted(place, borders), borders, borders
            # The one before the first that begins behind the border may reach over it.
            found[1:, 0] = (torch.searchsorted(place, borders, right=True) - 1).clamp(min=0)
        return found

    def _chunks_of_places(self) -> Iterator[Room]:
        """What row_gradients_kernel leaves of each chunk.

        Where candidates share histories of several users, the host knows the number of pairs only if weights are
        returned. Else chunks cover what it would be if all users had as many candidates, and one more takes what is
        beyond, mostly nothing; it has no room, so each kernel goes down its tiles itself.
        """
        call, given = self.call, self.call.given
        if not self.chunked:
            yield NO_ROOM
            return
        capacity = call.rows if given.row_index is None else given.row_index.shape[0]
        known = given.query_to_user is None or given.total_pairs > 0 or call.users == 1
        if given.query_to_user is not None:
            capacity = given.total_pairs or cdiv(capacity * call.queries, max(call.users, 1))
        stride = self.made.room.stride
        size = min(places_that_fit(chips.chip(call.device), stride * call.dtype.itemsize + 4), max(capacity, 1))
        count = cdiv(max(capacity, 1), size)
        layers, ds = torch.empty(size, stride, dtype=call.dtype, device=call.device), torch.empty(size, **self.wide)
        residual = torch.empty(2, **self.wide)
        for number, chunk in enumerate(self._borders(count + (0 if known else 1), size).unbind()):
            room = NO_ROOM if number == count else Room(layers, ds, None, None)
            yield room._replace(chunk=chunk, residual=residual)

    def _launch_rows(self, chunk: Chunk, made: Pass, parts: torch.Tensor, room: Room, turn: int) -> None:
        call, tiles = self.call, self.rows
        order = Order(None, None)
        if made.shared == "ordered":
            order = _by_user(call.given.query_to_user, chunk, tiles.programs)
        launch(
            row_gradients_kernel,
            (tiles.programs,),
            (
                chunk.inputs,
                self.given,
                self.history if made.stop < 0 else (),
                room,
                parts,
                order,
                call.rows,
                call.queries,
                turn,
                chunk.first,
                chunk.last,
                tiles.splits,
                call.given.scale,
            ),
            {"UNIT": call.unit, "TILE": tiles.tile, "PASS": made},
            tiles.options,
        )

    def _launch_first(self, chunk: Chunk, made: Pass, out: FirstGrads, room: Room, turn: int, resumed: int) -> None:
        call, tiles = self.call, self.first
        units = (in_blocks(call.unit, tiles.block),)
        if room.layers is not None:
            units = columns_apart(units[0])
        for at, unit in enumerate(units):
            launch(
                first_layer_kernel,
                (tiles.programs,),
                (
                    chunk.inputs,
                    self.given,
                    out,
                    room,
                    call.queries,
                    chunk.first,
                    chunk.last,
                    tiles.splits,
                    turn,
                    resumed,
                    call.given.scale,
                ),
                {"UNIT": unit, "TILE": tiles.tile, "PASS": made, "TERM": at == 0},
                tiles.options,
            )

    def _launch_upper(self, chunk: Chunk, made: Pass, parts: torch.Tensor, room: Room, turn: int, resumed: int) -> None:
        call, tiles = self.call, self.upper
        unit = in_blocks(call.unit, tiles.block)
        launch(
            upper_layers_kernel,
            (tiles.programs,),
            (
                chunk.inputs,
                self.given,
                parts,
                room,
                chunk.first,
                chunk.last,
                tiles.splits,
                turn,
                resumed,
                call.given.scale,
            ),
            {"UNIT": unit, "TILE": tiles.tile, "PASS": made, "TO": upper_places(unit.widths, unit.hidden)},
            tiles.options,
        )

    def _sums_parts(self) -> torch.Tensor:
        return torch.zeros(self.rows.programs, self.made.sums_size, **self.wide)

    def through_statistics(self, statistics: torch.Tensor) -> None:
        """Batch statistics of Dice, and from the last layer down the averages of g and g zhat over all pairs, which
        must be there before a layer's dz."""
        unit, where = self.call.unit, self.call.inputs.where
        widths = unit.widths[: unit.hidden]
        for layer in range(unit.hidden):
            mean, var = (each.split(widths)[layer] for each in statistics)
            self.call = self.call.with_params(layer, mean, inverse_deviation(var, self.call.given.eps[layer]))
        user = where.query_to_user
        pairs = (where.length if user is None else where.length[user]).sum().clamp(min=1)
        for layer in reversed(range(unit.hidden)):
            made, parts = self.made._replace(stop=layer, shared="none"), self._sums_parts()
            for chunk in chunks(self.call) if self.call.queries else ():
                self._launch_rows(chunk, made, parts, NO_ROOM, 0)
            averages = Sums(self.call, self.sums, parts.sum(0)).of(layer) / pairs
            self.call = self.call.with_params(layer, averages[1], averages[2])

    def all(self, grads: LocalActivationGrads) -> LocalActivationGradients:
        """What the op's backward returns."""
        call, unit, given = self.call, self.call.unit, self.call.given
        size = unit.widths[0] * unit.dim
        sums = self._sums_parts()
        first = torch.empty(self.first.programs, 0 if self.outer else 2 * size, **self.wide)
        to = upper_places(unit.widths, unit.hidden)
        upper = torch.empty(self.upper.programs, to.size, **self.wide)
        again = self.made._replace(sums=0)  # the sums are made once
        for number, chunk in enumerate(chunks(call) if call.queries else ()):
            folded = chunk.inputs.folded
            out = FirstGrads(
                self.query, self.term, None if folded is None else torch.empty(folded.shape, **self.wide), first
            )
            for turn, room in enumerate(self._chunks_of_places()):
                self._launch_rows(chunk, self.made, sums, room, turn % 2)
                resumed = int(number > 0 or turn > 0)
                self._launch_first(chunk, again, out, room, turn % 2, resumed)
                if unit.hidden:
                    self._launch_upper(chunk, again, upper, room, turn % 2, resumed)
            if folded is not None:
                self.outer.add(chunk, out.folded, self.query)
        query, weights, biases = self._finish(grads, first, upper, to)
        if self.outer is not None:
            weight_outer = self.outer.weight_outer.view(unit.dim, unit.widths[0], unit.dim).transpose(0, 1)
            every = [weights[0], self.outer.weight_k, weight_outer.reshape(unit.widths[0], -1)]
            weights[0] = torch.cat(every, 1).to(given.weights[0].dtype)
        params = Sums(call, self.sums, sums.sum(0)).params() if self.sums else []
        if grads.need_history:
            history = [each.to(call.dtype) for each in self.history]
        else:
            history = [table.new_empty(0) for table in call.inputs.history.tables]
        return LocalActivationGradients(query, history, weights, biases, params)

    def _finish(self, grads: LocalActivationGrads, first, upper, to):
        """Gradients of the query, of the weights (for outer of Wq alone in place of the first) and of the biases."""
        call, unit, given = self.call, self.call.unit, self.call.given
        query = [
            torch.empty(call.queries if grads.need_query else 0, table.shape[1], dtype=call.dtype, device=call.device)
            for table in call.inputs.query.tables
        ]
        blocks = cdiv(call.queries, TERM_ROWS)
        programs = min(blocks, chips.multiprocessors(call.device))
        size = unit.widths[0] * unit.dim
        parts = torch.empty(programs, size + unit.widths[0], **self.wide)
        if call.queries:
            launch(
                query_gradients_kernel,
                (programs,),
                (
                    call.inputs,
                    self.query,
                    self.term,
                    tuple(query) if grads.need_query else (),
                    parts,
                    call.queries,
                    self.first.splits,
                ),
                {"UNIT": unit, "BLOCK": TERM_ROWS, "PRECISION": "ieee"},
                {"num_warps": 8},
            )
        weights = [torch.empty(each.shape, dtype=each.dtype, device=call.device) for each in given.weights]
        biases = [torch.empty(each.shape, dtype=each.dtype, device=call.device) for each in given.biases]
        if self.outer is not None:
            weights[0] = torch.empty(unit.widths[0], unit.dim, **self.wide)
        launch(
            finish_kernel,
            (finish_blocks(unit.dim, unit.widths, unit.hidden, FINISH_BLOCK),),
            (
                first,
                parts,
                upper,
                tuple(weights),
                tuple(biases),
                self.first.programs if call.queries else 0,  # without candidates no part was written
                programs,
                self.upper.programs if call.queries else 0,
            ),
            {
                "UNIT": unit,
                "TO": to,
                "FEATURES": call.features,
                "INTO": call.form.into,
                "GAIN": call.form.gain,
                "SHIFT": call.form.shift,
                "BLOCK": FINISH_BLOCK,
                "EACH": FINISH_EACH,
            },
            {"num_warps": 4},
        )
        if not grads.need_query:
            query = [each.view(-1) for each in query]
        return query, weights, biases


def backward(
    given: LocalActivationCall, saved: LocalActivationResult, grads: LocalActivationGrads
) -> LocalActivationGradients:
    """Kernel calls of the op's backward."""
    made = _Backward(given, saved, grads)
    with on_device_of(given.begin):
        make_weights(made.call)
        if given.dice_training:
            made.through_statistics(saved.statistics)
        return made.all(grads)
