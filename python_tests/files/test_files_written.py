"""Claims about writing: a file is the old one or the new one, whatever happens, and JSON holds no bare NaN."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from din_kernels import files
from din_kernels.benchmarking import harness

# The child loads the module alone, without torch, so that it starts at once.
HALF_WRITTEN = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.replacing(sys.argv[2]) as out:
    out.write(b"new" * 100_000)
    out.flush()
    print("half", flush=True)
    time.sleep(60)
"""


class Full:
    """A file of a disk that is full after some bytes."""

    def __init__(self, out, room: int):
        self._out, self._room = out, room

    def __enter__(self):
        self._out.__enter__()
        return self

    def __exit__(self, *error):
        return self._out.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._out, name)

    def write(self, content) -> int:
        self._room -= len(content)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._out.write(content)


def fill_disk(monkeypatch, room: int) -> None:
    """From here on every file that is opened for writing takes `room` bytes."""
    opened = Path.open

    def full(self, mode="r", *more, **options):
        out = opened(self, mode, *more, **options)
        return Full(out, room) if "w" in mode else out

    monkeypatch.setattr(Path, "open", full)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_file_is_replaced_as_a_whole_and_nothing_else_stays(tmp_path):
    path = tmp_path / "deep" / "down" / "a.txt"
    files.write_text(path, "first")
    files.write_text(path, "second é")
    assert path.read_bytes() == "second é".encode()
    assert names(path.parent) == ["a.txt"]


def test_the_content_reaches_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    order = []

    def synced(handle):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")

    monkeypatch.setattr(os, "fsync", synced)
    renamed = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), renamed(self, to))[1])
    files.write_bytes(tmp_path / "a", b"1")
    assert order == ["file", "rename", "folder"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_or_an_interrupt_in_the_middle_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), files.replacing(path) as out:
        out.write(b"ne")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_killed_writer_leaves_the_old_file_and_the_next_write_clears_up(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN, files.__file__, path], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    files.write_bytes(path, b"next")
    assert path.read_bytes() == b"next"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("room", [0, 3000])
def test_a_full_disk_leaves_the_old_file_and_is_told_with_path_and_reason(tmp_path, monkeypatch, room):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    fill_disk(monkeypatch, room)
    with pytest.raises(OSError, match="checkpoint cannot be written: No space left on device.*/a'") as raised:
        files.write_bytes(path, bytes(5000), "checkpoint")
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_noticed_by_the_trial(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="output cannot be written: it needs .* bytes, the disk has"):
        files.require_writable(tmp_path / "a", "output", size=2**62)
    fill_disk(monkeypatch, 0)
    with pytest.raises(OSError, match="output cannot be written: No space left on device"):
        files.require_writable(tmp_path / "a", "output")
    assert names(tmp_path) == []


def test_the_trial_leaves_the_file_alone_and_removes_what_a_killed_run_left(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    (tmp_path / "a.partial").write_bytes(b"half")
    files.require_writable(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("attempt", [files.require_writable, lambda path, name: files.write_text(path, "x", name)])
def test_a_path_that_cannot_be_written_is_named(tmp_path, attempt):
    (tmp_path / "file").write_text("x")
    with pytest.raises(IsADirectoryError, match=f"output cannot be written: Is a directory: '{tmp_path}'"):
        attempt(tmp_path, "output")
    for below in ("file/a", "file/deeper/a"):
        with pytest.raises(NotADirectoryError, match=f"output cannot be written: Not a directory: '.*{below}'"):
            attempt(tmp_path / below, "output")
    with pytest.raises(OSError, match="output cannot be written: File name too long"):
        attempt(tmp_path / ("a" * 300), "output")


@pytest.fixture
def open_folder():
    """A folder of everybody; root, who may write everywhere, is nobody for the length of the test."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)


def test_a_protected_file_or_folder_is_refused(open_folder):
    (open_folder / "kept").write_text("x")
    (open_folder / "kept").chmod(0o444)
    (open_folder / "closed").mkdir(mode=0o555)
    for path in ("kept", "closed/new"):
        for attempt in (files.require_writable, lambda path: files.write_text(path, "y")):
            with pytest.raises(PermissionError, match=f"file cannot be written: Permission denied: '.*{path}'"):
                attempt(open_folder / path)
    assert (open_folder / "kept").read_text() == "x"


def test_permissions_and_links_stay(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_in_place_and_stays_a_device(tmp_path):
    files.require_writable("/dev/null")
    files.write_text("/dev/null", "x")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="file cannot be written: No space left on device"):
        files.write_text("/dev/full", "x")


def test_lines_are_added_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    files.append_line(path, "1")
    files.append_line(path, "2")
    assert path.read_text() == "1\n2\n"
    fill_disk(monkeypatch, 3)
    with pytest.raises(OSError, match="No space left"):
        files.append_line(path, "3")
    assert path.read_text() == "1\n2\n"


def test_json_has_null_for_every_number_that_json_cannot_hold(tmp_path):
    content = {"a": [float("nan"), (float("inf"), -float("inf"), 1.5)], "b": {"c": float("nan"), "d": None, "e": True}}
    files.write_json(tmp_path / "a.json", content)

    def refuse(word):
        raise AssertionError(f"JSON has no {word}")

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": [None, [None, None, 1.5]], "b": {"c": None, "d": None, "e": True}}


def test_kept_results_of_benchmarks_hold_no_bare_nan(tmp_path):
    path = harness.save(tmp_path, "none", "case", [{"ratio": float("nan")}])
    assert json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))["rows"] == [{"ratio": None}]


def test_a_run_with_an_undefined_metric_is_kept_read_and_not_chosen(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(harness.ROOT / "benchmarks"))
    import regularization

    def executed(run, interactions, epochs):
        undefined = [float("nan")] * 2
        values = undefined if run.lr == regularization.RATES[0] else [0.25, float("nan")]
        return {metric: values for metric in regularization.METRICS}

    monkeypatch.setattr(regularization, "execute", executed)
    monkeypatch.setattr(regularization.data, "load", lambda path: None)
    monkeypatch.setattr(regularization, "RESULTS", tmp_path)
    regularization.run_all("toy", tmp_path, epochs=2, seeds=1)
    lines = (tmp_path / "toy.jsonl").read_text().splitlines()
    kept = [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines]
    assert kept[0]["metrics"]["auc"] == [None, None]
    best, epoch, value = regularization.chosen(regularization.load_runs(tmp_path / "toy.jsonl"), "prelu", "none")
    assert (best.lr, epoch, value) == (regularization.RATES[1], 1, 0.25)


# These write into a folder of their own that lives as long as the call, or into /proc.
OWN_FOLDER = ("memory.py", "triton_cubins.py")


def test_no_other_file_of_the_project_writes_past_the_helper():
    sources = [
        path for folder in ("din_kernels", "benchmarks", "tools") for path in harness.ROOT.glob(f"{folder}/**/*.py")
    ]
    assert len(sources) > 50
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sources
        if path.name not in ("files.py", *OWN_FOLDER)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"""(?<!files)\.write_(text|bytes)\(|open\([^)]*["'][wax]b?["']|savefig\(path""", line)
    ]
    assert found == []
