"""Registers, stack, spills, shared memory and occupancy of every CUDA kernel, per architecture, without a GPU.

    python tools/cuda_resources.py [FILE ...] [--output docs/cuda_resources.md]

Compiles the files of csrc/cuda (all, or those named as folder/file, without .cu) with nvcc and reads what ptxas says.
Exits with 1 where a kernel of a forward pass spills. Shared memory of the kernels over tiles is that of the house
shape's widths (D = 128, H = (80, 40)); their second parameter, true, is the folded variant.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gpu_model import CHIPS, Chip, resident_blocks

from din_kernels import _cuda_emulated, files
from din_kernels.backends.cuda.local_activation import CHUNK_BYTES
from din_kernels.options import feature_width

CSRC = Path(__file__).resolve().parent.parent / "csrc"


# What nvcc calls the chips whose kernels are compiled.
ARCHITECTURES = {"80": CHIPS["sm_80"], "90a": CHIPS["sm_90"], "100": CHIPS["sm_100"]}


class Kernel(NamedTuple):
    """One entry function as ptxas reports it."""

    architecture: str
    name: str
    registers: int
    stack: int
    spills: int  # bytes stored and loaded


ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def compiled(source: Path) -> Iterator[Kernel]:
    """Every kernel of one file, for every architecture."""
    targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "nvcc",
            "-std=c++17",
            "-O3",
            f"-I{CSRC / 'include'}",
            f"-I{CSRC / 'cuda'}",
            '-DDIN_KERNELS_CUDA_ARCHITECTURES=""',
        ]
        command += [*targets, "-Xptxas", "-v", "-c", source, "-o", Path(folder) / "object.o"]
        done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{source}: nvcc failed\n{done.stderr}")
    for found in ENTRY.finditer(done.stderr):
        yield Kernel(
            found["architecture"],
            found["name"],
            int(found["registers"]),
            int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
        )


def readable(names: list[str]) -> dict[str, str]:
    """Demangled, without namespaces and arguments."""
    done = subprocess.run(["c++filt", "-p"], input="\n".join(names), text=True, capture_output=True, check=True)
    short = [
        re.sub(r"din_kernels::cuda::|\(anonymous namespace\)::|^void ", "", line).strip()
        for line in done.stdout.splitlines()
    ]
    return dict(zip(names, short, strict=True))


def tile_launch(name: str, chip: Chip) -> tuple[int, int]:
    """Threads and shared memory of a kernel over tiles: of its precision, D = 128, H = (80, 40), 16,384 candidates with
    64 behaviours on average, or folded with 1024."""
    rows = 1 << (24 if name.endswith("true>") else 20)
    dtype = next((known for key, known in (("Bf16", "bfloat16"), ("Fp16", "float16")) if key in name), "float32")
    users, dim, widths = 16_384, 128, (80, 40, 1)
    inputs = (feature_width(dim, "concat"), *widths[:-1])
    # Addresses are 0: only the shapes of a call decide how it is launched.
    call = {
        "query_tables": [(0, dtype, (users, dim))],
        "query_ids": [],
        "history_tables": [(0, dtype, (rows, dim))],
        "history_ids": [],
        "begin": (0, "int64", (users,)),
        "length": (0, "int64", (users,)),
        **dict.fromkeys(("row_index", "row_mask", "query_to_user", "pair_begin")),
        "total_pairs": 0,
        "weights": [(0, dtype, shape) for shape in zip(widths, inputs, strict=True)],
        "biases": [(0, dtype, (width,)) for width in widths],
        "params": [],
        "eps": [],
        "dice_training": False,
        "features": "concat",
        "activation": "sigmoid",
        "normalize": "none",
        "scale": 1.0,
    }
    launch = {"precision": "highest" if "Fma" in name else "tensor cores", "chunk_bytes": CHUNK_BYTES}
    backward, shared = "backward" in name, chip.shared_per_block
    plan = _cuda_emulated.local_activation_plan(call, launch, backward, 132, shared)
    return plan["threads"], plan["shared_bytes"]


def report(kernels: list[Kernel]) -> Iterator[str]:
    """Lines of the page."""
    names = readable(sorted({kernel.name for kernel in kernels}))
    release = subprocess.run(["nvcc", "--version"], text=True, capture_output=True, check=True).stdout.splitlines()[-2]
    yield "# Resources of the CUDA kernels"
    yield ""
    yield f"`python tools/cuda_resources.py`, {release}. The kernels are compiled, not run."
    yield "Shared memory and occupancy (blocks per multiprocessor) of the kernels over tiles are those of D = 128 and"
    yield "H = (80, 40); their second parameter, `true`, stands for the folded variant."
    yield ""
    for architecture, chip in ARCHITECTURES.items():
        yield f"## sm_{architecture}"
        yield ""
        yield "| kernel | registers | stack | spills | shared memory | blocks per multiprocessor |"
        yield "|---|---|---|---|---|---|"
        own = [kernel for kernel in kernels if kernel.architecture == architecture]
        for kernel in sorted(own, key=lambda each: names[each.name]):
            name = names[kernel.name]
            shared, blocks = "", ""
            if name.startswith(("local_activation_forward", "local_activation_backward")):
                threads, shared = tile_launch(name, chip)
                blocks = resident_blocks(chip, kernel.registers, shared, -(-threads // 32))
            yield f"| `{name}` | {kernel.registers} | {kernel.stack} | {kernel.spills} | {shared} | {blocks} |"
        yield ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="files in csrc/cuda as folder/file, without .cu (default: all)")
    parser.add_argument("--output", type=Path, help="write the page here (default: standard output)")
    options = parser.parse_args()
    sources = [CSRC / "cuda" / f"{name}.cu" for name in options.files] or sorted((CSRC / "cuda").glob("*/*.cu"))
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda source: list(compiled(source)), sources)
        kernels = [kernel for part in parts for kernel in part]
    page = "\n".join(report(kernels)).rstrip() + "\n"
    if options.output:
        files.write_text(options.output, page)
    else:
        print(page, end="")
    spilling = [kernel for kernel in kernels if kernel.spills and not re.search("backward|gradient", kernel.name)]
    for kernel in spilling:
        print(f"sm_{kernel.architecture}: {kernel.name} spills {kernel.spills} bytes", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
