"""What an op or an option lacks in some layer: the places of docs/architecture.md, looked at one by one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from din_kernels import options
from din_kernels.backends import calls

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_BACKWARD = ("sparse_update",)
SUFFIXES = (".py", ".h", ".cpp", ".cu", ".cuh")

# Where a quoted name of an option, or in the kernels of C++ its enumerator k<Name>, must occur.
OF_EVERY_OPTION = ("csrc/include", "din_kernels/backends/triton", "din_kernels/backends/reference")
PLACES = {
    "activation": (*OF_EVERY_OPTION, "csrc/cpu", "csrc/cuda", "din_kernels/nn", "python_tests/support/oracle.py"),
    "features": (*OF_EVERY_OPTION, "csrc/cpu", "python_tests/support/oracle.py"),
    "normalize": OF_EVERY_OPTION,
    "rule": ("csrc/include", "din_kernels/backends/reference", "python_tests/support/oracle.py"),
}


def camel(name: str) -> str:
    """mba_penalty as MbaPenalty."""
    return "".join(word.capitalize() for word in name.split("_"))


def missing_of_op(op: str) -> Iterator[str]:
    """What op `op` lacks, a line each."""
    schemas = (ROOT / "din_kernels/ops/schemas.py").read_text()
    backward = op not in WITHOUT_BACKWARD
    for name in (op, *([f"{op}_backward"] if backward else [])):
        if f"{name}(" not in schemas:
            yield f"{op}: no schema of {name} in din_kernels/ops/schemas.py"
    for kind in ("Call", *(("Result", "Grads", "Saved") if backward else ())):
        if not hasattr(calls, camel(op) + kind):
            yield f"{op}: no {camel(op)}{kind} in din_kernels/backends/calls.py"
    if module_of(f"din_kernels/ops/{op}") is None:
        yield f"{op}: no din_kernels/ops/{op}.py"
    for backend in options.BACKENDS:
        needed = ("forward", *(("backward",) if backward else ())) if backend != "reference" else (op,)
        yield from _missing_functions(op, f"din_kernels/backends/{backend}/{op}", ("refuses", *needed))
    files = [
        f"csrc/include/din_kernels/{op}.h",
        f"csrc/include/din_kernels/cuda/{op}.h",
        *(f"csrc/{device}/{op}" for device in ("cpu", "cuda")),
        *(f"csrc/python/{device}/{op}.cpp" for device in ("cpu", "cuda")),
        f"python_tests/{op}/test_{op}.py",
    ]
    for file in files:
        if not (ROOT / file).exists():
            yield f"{op}: no {file}"
    if f"`{op}`" not in (ROOT / "docs/architecture.md").read_text():
        yield f"{op}: not named in docs/architecture.md"


def _missing_functions(op: str, place: str, needed: Iterable[str]) -> Iterator[str]:
    file = module_of(place)
    if file is None:
        yield f"{op}: no {place}.py"
        return
    tree = ast.parse(file.read_text())
    names = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
    names |= {
        alias.asname or alias.name for each in tree.body if isinstance(each, ast.ImportFrom) for alias in each.names
    }
    for name in needed:
        if name not in names:
            yield f"{op}: no {name} in {file.relative_to(ROOT)}"


def module_of(place: str) -> Path | None:
    """The file of a module or package."""
    return next((file for file in (ROOT / f"{place}.py", ROOT / place / "__init__.py") if file.exists()), None)


def missing_of_option(kind: str, value: str) -> Iterator[str]:
    """What value `value` of option `kind` lacks, a line each."""
    for place in PLACES[kind]:
        pattern = rf"\bk{camel(value)}\b" if place in ("csrc/cpu", "csrc/cuda") else f'"{value}"'
        if not any(re.search(pattern, file.read_text()) for file in _sources(ROOT / place)):
            yield f"{kind} {value}: not in {place}"


def _sources(place: Path) -> Iterator[Path]:
    yield from (each for each in place.rglob("*") if each.suffix in SUFFIXES) if place.is_dir() else [place]
