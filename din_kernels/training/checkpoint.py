"""Checkpoints at epoch boundaries, from which training continues bit for bit.

A file is what torch.save writes, followed by one line with the SHA-256 of all before it:

    | zip archive of torch.save | "\\n" "din-kernels sha256 " 64 hexadecimal digits "\\n" |

torch.load reads it as it is, since an archive is found from its own end. Version 1 had no such line; its files are read
with a warning that damage would not be noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from din_kernels import files
from din_kernels.models.base import Model
from din_kernels.training.errors import CheckpointError
from din_kernels.training.optimizers import Optimizers
from din_kernels.training.options import TrainingOptions

VERSION = 2
UNCHECKED_VERSION = 1  # before the checksum
TRAILER = re.compile(rb"\ndin-kernels sha256 ([0-9a-f]{64})\n")
TRAILER_BYTES = 85
BLOCK_BYTES = 1 << 20

ENTRIES = {
    "version": int,
    "model_name": str,
    "config": dict,
    "options": dict,
    "model": dict,
    "optimizers": list,
    "rng": torch.Tensor,
    "cuda_rng": list,
    "history": list,
}


def save(
    path: str | Path,
    model: Model,
    optimizers: Optimizers,
    options: TrainingOptions,
    history: list[dict[str, Any]],
) -> None:
    """Writes all that training needs to go on, and the history so far; a broken write leaves the old file.

    Raises:
        OSError: the file cannot be written; see `files.replacing`.
    """
    content = {
        "version": VERSION,
        "model_name": type(model).__name__,
        "config": model.config.to_dict(),
        "options": dataclasses.asdict(options),
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "history": history,
    }
    with files.replacing(path, "checkpoint") as out:
        hashed = _Hashed(out)
        try:
            torch.save(content, cast("BinaryIO", hashed))
        except BaseException:
            if hashed.error is None:
                raise
        if hashed.error is not None:
            # torch's writer is closed while this error passes, and raises one of its own that would hide a full disk.
            raise hashed.error
        out.write(b"\ndin-kernels sha256 " + hashed.digest.hexdigest().encode() + b"\n")


def resume(path: str | Path, model: Model, optimizers: Optimizers, options: TrainingOptions) -> list[dict[str, Any]]:
    """Restores what `save` wrote and returns the history; the next epoch is `len(history)`.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: a file that is damaged or no checkpoint, another model or config, or other options than the
            number of epochs.
    """
    content = _read(Path(path))
    expected = {"model_name": type(model).__name__, "config": model.config.to_dict()}
    for name, value in expected.items():
        if content[name] != value:
            raise CheckpointError(f"{path}: {name} must be {value}, got {content[name]}")
    for name, value in dataclasses.asdict(options).items():
        if name != "epochs" and content["options"].get(name) != value:
            raise CheckpointError(f"{path}: option {name} must be {value}, got {content['options'].get(name)}")
    try:
        model.load_state_dict(content["model"])
        optimizers.load_state_dict(content["optimizers"])
        torch.set_rng_state(content["rng"])
        if torch.cuda.is_available() and content["cuda_rng"]:
            torch.cuda.set_rng_state_all(content["cuda_rng"])
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: its state does not fit the model: {first_line(error)}") from error
    return content["history"]


def state_bytes(model: Model) -> int:
    """Bytes of the model's state, which a checkpoint holds at least."""
    return sum(each.numel() * each.element_size() for each in model.state_dict().values())


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _read(path: Path) -> dict[str, Any]:
    """The entries of a checkpoint, checked against its checksum and `ENTRIES`."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise OSError(error.errno, f"checkpoint cannot be read: {error.strerror}", str(path)) from error
    with file:
        checked = _verified(path, file)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch and pickle raise errors of a dozen types on what is no archive
            raise CheckpointError(f"{path}: not a readable checkpoint ({_why(path, error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a checkpoint must hold a dict, got {type(content).__name__}")
    for name, kind in ENTRIES.items():
        if not isinstance(content.get(name), kind):
            got = type(content[name]).__name__ if name in content else "none"
            raise CheckpointError(f"{path}: a checkpoint must have the entry {name} ({kind.__name__}), got {got}")
    version = content["version"]
    if version not in (UNCHECKED_VERSION, VERSION):
        raise CheckpointError(f"{path}: version must be {UNCHECKED_VERSION} or {VERSION}, got {version}")
    if not checked:
        if version != UNCHECKED_VERSION:
            raise CheckpointError(f"{path}: the checksum at the end of the file is missing, so it was cut or changed")
        warnings.warn(
            f"{path}: a checkpoint of version {UNCHECKED_VERSION} has no checksum, damage would not be noticed",
            stacklevel=4,
        )
    return content


def _verified(path: Path, file: BinaryIO) -> bool:
    """Whether the file ends in a checksum, which must then be that of its content; leaves `file` at its begin."""
    size = file.seek(0, 2)
    if not size:
        raise CheckpointError(f"{path}: not a readable checkpoint (the file is empty)")
    file.seek(max(0, size - TRAILER_BYTES))
    trailer = TRAILER.fullmatch(file.read())
    file.seek(0)
    if trailer is None:
        return False
    digest, left = hashlib.sha256(), size - TRAILER_BYTES
    while left and (block := file.read(min(left, BLOCK_BYTES))):
        digest.update(block)
        left -= len(block)
    file.seek(0)
    if digest.hexdigest().encode() != trailer[1]:
        raise CheckpointError(f"{path}: the content does not match its checksum, so the file is damaged")
    return True


def _why(path: Path, error: Exception) -> str:
    """The reason in our words: torch's advise to load with weights_only=False, which would run code of the file."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return f"{path.stat().st_size} bytes that torch.save did not write"
    return f"cut or damaged: {first_line(error)}"


class _Hashed:
    """A file for torch.save: hashes what passes, and keeps the error that a write raised."""

    def __init__(self, out: BinaryIO):
        self._out, self.digest = out, hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, content) -> int:
        try:
            self.digest.update(content)
            return self._out.write(content)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._out.flush()
