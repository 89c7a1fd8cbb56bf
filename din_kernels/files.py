"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed; and JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"
TRIAL_BYTES = 4096  # one block: an empty file can be made on a full disk, a block cannot be written


@contextlib.contextmanager
def replacing(path: str | Path, name: str = "file") -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of `path` when the block ends without an error.

    The content goes to `<path>.partial`, reaches the disk, and is renamed, so that a power cut or a kill leaves the old
    file or the new one. An error or an interrupt in the block removes the partial file; a killed process leaves it, and
    the next write of the same path takes it over. Two processes must not write the same path at once. A device or a
    pipe (/dev/stdout) is written in place.

    Args:
        path: the file; folders above it are made. Permissions of an existing file stay.
        name: what the file is, for errors.

    Raises:
        OSError: the path is a folder or cannot be written; the message holds `name`, the path and the reason.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a" / "numbers.bin"
        >>> with replacing(path) as out:
        ...     _ = out.write(b"12")
        >>> path.read_bytes()
        b'12'
    """
    with _named(path, name):
        place = _place(path)
        if place.exists() and not place.is_file():
            with place.open("wb") as out:
                yield out
            return
        partial = place.with_name(place.name + PARTIAL)
        try:
            with partial.open("wb") as out:
                if place.exists():
                    os.fchmod(out.fileno(), stat.S_IMODE(place.stat().st_mode))
                yield out
                out.flush()
                os.fsync(out.fileno())
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _flush_folder(place.parent)


def require_writable(path: str | Path, name: str = "file", size: int = 0) -> None:
    """Tries what `replacing` will do, with one block, and leaves no file; folders above `path` are made.

    A device or a pipe is tried with an empty line, which text and JSON may begin with.

    Args:
        path: the file that will be written.
        name: what the file is, for errors.
        size: bytes that it will have at least.

    Raises:
        OSError: as `replacing`, or fewer than `size` bytes are free.
    """
    with _named(path, name):
        place = _place(path)
        if place.exists() and not place.is_file():
            place.write_bytes(b"\n")
            return
        partial = place.with_name(place.name + PARTIAL)
        try:
            with partial.open("wb") as out:
                out.write(bytes(TRIAL_BYTES))
                out.flush()
                os.fsync(out.fileno())
        finally:
            partial.unlink(missing_ok=True)
        free = shutil.disk_usage(place.parent).free
        if free < size:
            raise OSError(errno.ENOSPC, f"it needs {size} bytes, the disk has {free} left")


def write_bytes(path: str | Path, content: bytes, name: str = "file") -> None:
    """Writes a whole file as `replacing` does."""
    with replacing(path, name) as out:
        out.write(content)


def write_text(path: str | Path, content: str, name: str = "file") -> None:
    """Writes a whole file of UTF-8 as `replacing` does."""
    write_bytes(path, content.encode(), name)


def write_json(path: str | Path, content: Any, name: str = "file", indent: int = 1) -> None:
    """Writes `json_text` of `content` and a newline as `replacing` does."""
    write_text(path, json_text(content, indent) + "\n", name)


def append_line(path: str | Path, line: str, name: str = "file") -> None:
    """Adds a line to a file of text that may not exist yet; the whole file is written anew, so no half line stays."""
    path = Path(path)
    before = path.read_bytes() if path.exists() else b""
    write_bytes(path, before + line.encode() + b"\n", name)


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON that any parser reads: numbers that are not finite, which JSON has no word for, become null.

    Example:
        >>> json_text({"auc": float("nan"), "loss": [0.5]})
        '{"auc": null, "loss": [0.5]}'
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _place(path: str | Path) -> Path:
    """Where `path` leads (a rename onto a link would replace the link), in a folder that exists."""
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if place.parent.exists() and not place.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return place


@contextlib.contextmanager
def _named(path: str | Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, f"{name} cannot be written: {reason}", str(path)) from error


def _flush_folder(folder: Path) -> None:
    """Makes a rename last; the file is whole without it, so a file system that cannot do it is left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
