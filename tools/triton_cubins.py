"""Compiles every Triton kernel as the house shapes launch it, without a GPU: registers, spills, matrix instructions.

Calls the backend's functions on small CPU tensors whose sizes take the same path; a launch compiles the kernel for the
chip, with the stored configuration, and runs nothing. Writes docs/results/triton_cubins.md. Exit status 1 where a
forward kernel spills, or a kernel takes more shared memory than the chip has or than tiles were chosen by.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"
import machine_code
import torch
import triton
from gpu_model import CHIPS
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from din_kernels import files
from din_kernels.backends.calls import (
    DiceCall,
    DiceGrads,
    DiceSaved,
    Hyper,
    LocalActivationCall,
    LocalActivationGrads,
    MbaPenaltyCall,
    MbaPenaltyGrads,
    MbaPenaltySaved,
    SparseUpdateCall,
    Table,
)
from din_kernels.backends.triton import chips, dice, local_activation, mba_penalty, sparse_update
from din_kernels.backends.triton.local_activation import memory
from din_kernels.backends.triton.local_activation.plan import refuses_sizes
from din_kernels.options import ACTIVATIONS, RULES, feature_width

TENSOR_MEMORY = 512  # columns of a multiprocessor of sm_100
DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, SUMMARY = DOCS / "results" / "triton_cubins.md", DOCS / "performance.md"
MARKED = re.compile(
    r"(<!-- compiled -->\n).*?(<!-- end -->)", re.DOTALL
)  # where SUMMARY has the table of a few kernels
MAIN = ("gpu_train", "gpu_train, Dice in training", "real, bf16", "uniform100", "uniform100, TF32")  # what it shows
INSTRUCTIONS = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync", "tanh.approx": "tanh.approx"}
NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Unit(NamedTuple):
    """A call of the unit that takes the kernels' path of a house shape."""

    length: int  # average
    dtype: torch.dtype = torch.float32
    dim: int = 128
    hidden: tuple[int, ...] = (80, 40)
    activation: str = "sigmoid"
    features: str = "concat"
    normalize: str = "none"
    users: int = 1024
    candidates: int = 1
    training: bool = False
    precision: str = "highest"


UNITS = {
    "gpu_train": Unit(100, torch.bfloat16),
    "gpu_train, softmax": Unit(100, torch.bfloat16, normalize="softmax"),
    "gpu_train, Dice in training": Unit(100, torch.bfloat16, activation="dice", training=True),
    "gpu_train, outer": Unit(100, torch.bfloat16, features="outer", users=8),
    "gpu_train, fp16": Unit(100, torch.float16),
    "uniform100": Unit(50),
    "uniform100, TF32": Unit(50, precision="high"),
    "real": Unit(10),
    "real, TF32": Unit(10, precision="high"),
    "real, bf16": Unit(10, torch.bfloat16),
    "industrial": Unit(25, dim=36, hidden=(36,), activation="prelu"),
    "long": Unit(10_000, dim=64, users=4),
    "serving, bf16": Unit(100, torch.bfloat16, users=1, candidates=500),
    "wide": Unit(100, torch.bfloat16, dim=64, hidden=(200, 80)),
}


class Offline:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are kept per device

    def get_current_stream(self, device: int) -> int:
        return 0


KINDS = {
    "row_gradients_kernel": memory.ROWS,
    "first_layer_kernel": memory.FIRST,
    "upper_layers_kernel": memory.UPPER,
}  # of the unit's kernels that go over all pairs; the others are of the forward


def fp32(call: str) -> bool:
    """Whether a call is one of the unit on fp32 rows, whose products in parts take more registers than there are."""
    return call in UNITS and UNITS[call].dtype == torch.float32


def bound_of(launch: dict[str, Any], args: tuple, kernel: str) -> int:
    """Bytes of shared memory that a launch of the unit was taken to need at most."""
    unit, columns = launch["UNIT"], sum(launch["UNIT"].d_spans.width)
    itemsize = args[0].history.tables[0].element_size()
    return memory.bound(columns, unit.widths, itemsize, KINDS.get(kernel, memory.FORWARD), launch["TILE"])


@contextlib.contextmanager
def offline(chip: str, launch: Callable[..., Any]) -> Iterator[None]:
    """Within, launch(run, kernel, args, options) takes the place of every launch, as for the chip."""
    run = JITFunction.run
    limits = CHIPS[chip]
    properties = {
        "chip": chip,
        "multiprocessors": limits.multiprocessors,
        "shared_memory": limits.shared_per_block,
    }
    with contextlib.ExitStack() as stack:
        for name in ("chip", "multiprocessors", "shared_memory"):
            stack.enter_context(mock.patch.object(chips, name, lambda device, name=name: properties[name]))
        stack.enter_context(
            mock.patch.object(
                JITFunction,
                "run",
                lambda kernel, *args, **options: launch(run, kernel, args, options | {"warmup": True}),
            )
        )
        driver.set_active(Offline(CHIPS[chip].capability))
        yield


def compiled(chip: str, call: Callable[[], Any]) -> list[tuple[str, Any, int | None]]:
    """(name, kernel, bound of its shared memory where it has one) of every launch of `call`, each once."""
    found: dict[Any, tuple[str, Any, int | None]] = {}

    def launch(run, kernel, args, options):
        made, name = run(kernel, *args, **options), kernel.fn.__name__
        bound = bound_of(options, args, name) if "TILE" in options else None
        found[made.hash] = name, made, bound

    with offline(chip, launch):
        call()
    return list(found.values())


def specialized(chip: str, call: Callable[[], Any]) -> list[str]:
    """What `call` would compile on the chip if nothing had been: names and all that kernels are kept by."""
    found = []

    def launch(run, kernel, args, options):
        kernel.device_caches.clear()
        return run(kernel, *args, **options)

    def hook(*, key, fn, **_):
        found.append(f"{fn.name} {key}")
        return True  # compiles nothing

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, hook
    try:
        with offline(chip, launch):
            call()
    finally:
        knobs.runtime.jit_cache_hook = before
    return found


def unit_call(shape: Unit, backward: bool = True, length: torch.Tensor | None = None) -> Callable[[], Any]:
    """Forward and backward of the unit on tensors whose values do not matter; the backward only where it is served.

    `length` [U] holds the users' numbers of behaviours; by default each has the average.
    """
    dim, queries = shape.dim, shape.users * shape.candidates
    if length is None:
        length = torch.full((shape.users,), shape.length)
    widths = [feature_width(dim, shape.features), *shape.hidden, 1]
    params = ACTIVATIONS[shape.activation].given(shape.training)
    user = torch.arange(shape.users).repeat_interleave(shape.candidates) if shape.candidates > 1 else None
    given = LocalActivationCall(
        query_tables=[torch.zeros(queries, dim, dtype=shape.dtype)],
        query_ids=[],
        history_tables=[torch.zeros(int(length.sum()), dim, dtype=shape.dtype)],
        history_ids=[],
        begin=length.cumsum(0) - length,
        length=length,
        row_index=None,
        row_mask=None,
        query_to_user=user,
        pair_begin=None,
        total_pairs=0,
        weights=[torch.zeros(b, a, dtype=shape.dtype) for a, b in zip(widths[:-1], widths[1:], strict=True)],
        biases=[torch.zeros(b, dtype=shape.dtype) for b in widths[1:]],
        params=[torch.zeros(width) for width in shape.hidden for _ in params],
        eps=[1e-8] * len(shape.hidden),
        dice_training=shape.training,
        sparse_grad=True,
        query_padding=[],
        history_padding=[],
        features=shape.features,
        activation=shape.activation,
        normalize=shape.normalize,
        scale=1.0,
    )

    def call():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(shape.precision)
        try:
            saved = local_activation.forward(given)
            sizes = ((dim,), (dim,), shape.hidden, shape.dtype, "cpu")
            if backward and refuses_sizes(*sizes, backward=True) is None:
                grads = LocalActivationGrads(torch.zeros(queries, dim, dtype=shape.dtype), None, True, True)
                local_activation.backward(given, saved, grads)
        finally:
            torch.set_float32_matmul_precision(before)

    return call


def sparse_calls(entries: int = 512) -> dict[str, Callable[[], Any]]:
    """The sparse ops at D = 64, in fp32."""
    weight, ids, grads = torch.zeros(1024, 64), torch.arange(entries), torch.zeros(entries, 64)
    counts = torch.ones(1024, dtype=torch.int64)

    def update(rule):
        states = [torch.zeros_like(weight) if shape == "VD" else torch.zeros(1024) for shape in RULES[rule]]
        table = Table(weight, states, ids, grads, Hyper(0.1, 0.1, 0.9, 0.99, 1e-8, 0.01), counts, 0)
        return lambda: sparse_update.forward(SparseUpdateCall.of([table], rule))

    def penalty():
        call = MbaPenaltyCall(weight, ids, counts, 0.01, 0, sparse=True)
        value, *saved = mba_penalty.forward(call)
        for sparse in (True, False):
            grads = MbaPenaltyGrads(value, entries)
            mba_penalty.backward(call._replace(sparse=sparse), MbaPenaltySaved(*saved), grads)

    return {f"sparse_update, {rule}": update(rule) for rule in RULES} | {"mba_penalty": penalty}


def dice_call(rows: int = 4096, channels: int = 200, dtype: torch.dtype = torch.bfloat16, backward: bool = True) -> Any:
    """Dice in training over [rows, channels], forward and backward."""
    x, alpha = torch.zeros(rows, channels, dtype=dtype), torch.zeros(channels)
    call = DiceCall(x, alpha, weight=None, bias=None, mean=None, var=None, mask=None, training=True, eps=1e-8)
    y, mean, var, _ = dice.forward(call)
    return dice.backward(call, DiceSaved(mean, var), DiceGrads(y)) if backward else None


_DISASSEMBLED: dict[str, tuple[dict[str, int], machine_code.Code]] = {}


def disassembled(kernel: Any) -> tuple[dict[str, int], machine_code.Code]:
    """What cuobjdump says of a compiled kernel's resources (REG, STACK, LOCAL), and its machine code."""
    if kernel.hash not in _DISASSEMBLED:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(kernel.asm["cubin"])
            usage, sass = (
                subprocess.run([NVIDIA / "cuobjdump", option, path], capture_output=True, text=True, check=True).stdout
                for option in ("--dump-resource-usage", "--dump-sass")
            )
        used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        (code,) = machine_code.functions(sass).values()
        _DISASSEMBLED[kernel.hash] = used, code
    return _DISASSEMBLED[kernel.hash]


def facts(kernel: Any) -> dict[str, Any]:
    """Registers and stack of a cubin; spills from its machine code."""
    used, code = disassembled(kernel)
    ptx = kernel.asm["ptx"]
    in_all, in_tiles = machine_code.spills(code)
    return {
        "registers": used["REG"],
        "spills": in_all,
        "in tiles": in_tiles,
        "stack": used["STACK"] + used["LOCAL"],
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "matrix": ", ".join(name for name, word in INSTRUCTIONS.items() if word in ptx) or "none",
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    chips_named = " ".join(dict.fromkeys(row["chip"] for row in rows))
    lines = [
        "# Triton kernels as compiled\n",
        f"Made by `python tools/triton_cubins.py --chips {chips_named}` with Triton {triton.__version__}, without "
        "a GPU: what the compiler says, not a measurement. Registers per thread; spills: instructions that read or "
        "write local memory, and how many of them run once a tile (the others once a candidate or program); "
        "shared memory and stack in bytes. A backward whose smallest tiles do not fit a chip is refused there and not "
        "in the table. fp32 under `highest` is computed on the ordinary units (matrix: none).\n",
    ]
    columns = ("call", "kernel", "registers", "spills", "in tiles", "stack", "shared", "warps", "matrix")
    for chip in CHIPS:
        own = [row for row in rows if row["chip"] == chip]
        if own:
            lines += [f"## {chip}\n", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(str(row[key]) for key in columns)} |" for row in own] + [""]
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """The unit's kernels over all pairs, of a few calls, by chip: registers, spills (in tiles), shared memory."""
    named = list(dict.fromkeys(row["chip"] for row in rows))
    lines = [f"| kernel | {' | '.join(named)} |", "|---" * (len(named) + 1) + "|"]
    for call in MAIN:
        for kernel in ("forward_kernel", *KINDS):
            cells = []
            for chip in named:
                # The last one of a name is the whole pass; those before it make Dice's sums alone.
                found = [row for row in rows if (row["chip"], row["call"], row["kernel"]) == (chip, call, kernel)][-1:]
                cells += [
                    f"{x['registers']}, {x['spills']} ({x['in tiles']}), {x['shared'] / 1024:.0f} KB, {x['matrix']}"
                    for x in found
                ] or ["refused"]
            lines.append(f"| {call}: {kernel} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--forward", action="store_true", help="the unit's forward alone; no page is written")
    parser.add_argument("--calls", nargs="+", metavar="name", help="default: all; no page is written for some")
    options = parser.parse_args()
    calls = {name: unit_call(shape, not options.forward) for name, shape in UNITS.items()}
    calls |= sparse_calls() | {"dice": dice_call}
    rows, wrong = [], []
    for chip in options.chips:
        known: dict[str, dict[str, Any]] = {}  # calls share kernels
        for name in options.calls or calls:
            begin = time.perf_counter()
            for kernel_name, kernel, bound in compiled(chip, calls[name]):
                if kernel.hash not in known:
                    known[kernel.hash] = facts(kernel)
                row = {"chip": chip, "call": name, "kernel": kernel_name} | known[kernel.hash]
                rows.append(row)
                if row["spills"] and kernel_name == "forward_kernel" and not fp32(name):
                    wrong.append(f"{chip}, {name}: {kernel_name} has {row['spills']} spills")
                most = min(CHIPS[chip].shared_per_block, bound or CHIPS[chip].shared_per_block)
                if row["shared"] > most:
                    wrong.append(f"{chip}, {name}: {kernel_name} takes {row['shared']} bytes of {most}")
                if chip == "sm_90" and "wgmma" in row["matrix"]:
                    wrong.append(f"{chip}, {name}: {kernel_name} takes wgmma, with which runs differed on hardware")
                if kernel.metadata.tmem_size > TENSOR_MEMORY:
                    wrong.append(
                        f"{chip}, {name}: {kernel_name} takes {kernel.metadata.tmem_size} columns of tensor memory"
                    )
                print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            print(f"{chip} {name}: {time.perf_counter() - begin:.1f} s", flush=True)
    if options.calls is None and not options.forward:
        files.write_text(PAGE, page(rows))
        marked = MARKED.sub(lambda match: match[1] + summary(rows) + match[2], SUMMARY.read_text())
        files.write_text(SUMMARY, marked)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
