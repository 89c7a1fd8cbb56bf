"""Claims about checkpoints: whole or refused by name, never silently wrong."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from din_kernels import data
from din_kernels.models import DINConfig
from din_kernels.training import CheckpointError, Diverged, Interrupted, TrainingOptions, build, loop, train
from din_kernels.training import checkpoint as checkpoints

OPTIONS = TrainingOptions(epochs=1, batch_size=64)

# Saves over and over, until it is killed in the middle.
SAVING = """
import sys
from din_kernels import data
from din_kernels.models import DINConfig
from din_kernels.training import Optimizers, TrainingOptions, build, checkpoint
made = data.generate(seed=0, users=40)
model = build("din", DINConfig.default(made.interactions.n_items, made.interactions.n_categories, dim=6))
options = TrainingOptions(epochs=1, batch_size=64)
optimizers = Optimizers(model, options)
while True:
    checkpoint.save(sys.argv[1], model, optimizers, options, [])
    print("saved", flush=True)
"""


@functools.cache
def generated() -> data.Generated:
    return data.generate(seed=0, users=40)


def run(options: TrainingOptions = OPTIONS, **more) -> tuple[dict, list]:
    """State and history of a run of a small DIN."""
    made = generated()
    config = DINConfig.default(made.interactions.n_items, made.interactions.n_categories, dim=6)
    model = build("din", config, seed=1)
    history = train(model, made.split, made.interactions, options, progress=False, **more)
    return model.state_dict(), history


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "run.pt"
    run(checkpoint=path)
    return path.read_bytes()


def resume(path):
    return run(checkpoint=path, resume=True)


def test_the_last_line_is_the_checksum_of_all_before_it(saved):
    line = b"\ndin-kernels sha256 " + hashlib.sha256(saved[:-85]).hexdigest().encode() + b"\n"
    assert saved[-85:] == line


def test_torch_reads_a_checkpoint_as_it_is(saved, tmp_path):
    (tmp_path / "a.pt").write_bytes(saved)
    assert set(torch.load(tmp_path / "a.pt", weights_only=True)) == set(checkpoints.ENTRIES)


def test_one_flipped_byte_anywhere_is_refused(saved, tmp_path):
    path, draw = tmp_path / "a.pt", np.random.default_rng(0)
    for at in [0, len(saved) - 1, *(len(saved) - 85 + draw.integers(0, 85, 10)), *draw.integers(0, len(saved), 40)]:
        damaged = bytearray(saved)
        damaged[at] ^= 1 << draw.integers(0, 8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            resume(path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_a_truncated_checkpoint_is_refused(saved, tmp_path, share):
    path = tmp_path / "a.pt"
    path.write_bytes(saved[: int(share * len(saved))])
    with pytest.raises(CheckpointError, match=rf"{path}: not a readable checkpoint \(cut or damaged: "):
        resume(path)


def test_a_checkpoint_that_lost_its_last_line_is_refused(saved, tmp_path):
    path = tmp_path / "a.pt"
    for cut in (1, 85):
        path.write_bytes(saved[:-cut])
        with pytest.raises(CheckpointError, match=f"{path}: the checksum at the end of the file is missing"):
            resume(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"not a readable checkpoint \(the file is empty\)"),
        (b"some text\n", r"not a readable checkpoint \(10 bytes that torch.save did not write\)"),
        ([1, 2], "a checkpoint must hold a dict, got list"),
        ({"model": {}}, r"a checkpoint must have the entry version \(int\), got none"),
        (torch.ones(3), "a checkpoint must hold a dict, got Tensor"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_with_path_and_reason(tmp_path, content, complaint):
    path = tmp_path / "a.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"{path}: {complaint}"):
        resume(path)


def changed(saved: bytes, path, **entries) -> None:
    """A file of version 1, without a checksum, with some entries changed."""
    path.write_bytes(saved)
    torch.save(torch.load(path, weights_only=True) | {"version": 1} | entries, path)


def test_a_checkpoint_from_before_checksums_still_loads_and_says_so(saved, tmp_path):
    path = tmp_path / "a.pt"
    changed(saved, path)
    with pytest.warns(UserWarning, match=f"{path}: a checkpoint of version 1 has no checksum"):
        old, _ = resume(path)
    path.write_bytes(saved)
    new, _ = resume(path)
    assert all(torch.equal(old[name], new[name]) for name in new)


@pytest.mark.filterwarnings("ignore:.*has no checksum")
@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"version": 3}, "version must be 1 or 2, got 3"),
        ({"options": [1]}, r"must have the entry options \(dict\), got list"),
        ({"model": {}}, "its state does not fit the model: Error.* in loading state_dict for DIN"),
        ({"optimizers": []}, "its state does not fit the model"),
        ({"rng": torch.ones(3)}, "its state does not fit the model"),
    ],
)
def test_entries_that_do_not_fit_are_refused(saved, tmp_path, entries, complaint):
    path = tmp_path / "a.pt"
    changed(saved, path, **entries)
    with pytest.raises(CheckpointError, match=f"{path}: .*{complaint}"):
        resume(path)


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"checkpoint cannot be written: Is a directory: '{tmp_path}'"):
        resume(tmp_path)


@pytest.mark.parametrize("room", [0, 3000, 20_000])
def test_a_disk_that_fills_while_saving_leaves_the_old_checkpoint(saved, tmp_path, monkeypatch, room):
    path = tmp_path / "a.pt"
    path.write_bytes(saved)
    write = checkpoints._Hashed.write

    def full(self, content):
        if self._out.tell() + len(content) > room:
            # As a real file raises it: within the write that torch's C++ writer calls.
            self._out = Failing()
        return write(self, content)

    class Failing:
        def tell(self):
            return 0

        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints._Hashed, "write", full)
    with pytest.raises(OSError, match=f"checkpoint cannot be written: No space left on device: '{path}'"):
        run(checkpoint=path)
    assert path.read_bytes() == saved
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]


def test_a_run_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    with subprocess.Popen([sys.executable, "-c", SAVING, path], stdout=subprocess.PIPE, text=True) as child:
        for delay in (0.0, 0.003, 0.011):
            assert child.stdout.readline() == "saved\n"
            time.sleep(delay)
        child.send_signal(signal.SIGKILL)
    assert checkpoints._read(path)["history"] == []
    run(checkpoint=path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"], "the next run clears up"


@pytest.mark.parametrize("name", ["checkpoint", "output"])
def test_files_are_tried_before_the_first_step(tmp_path, monkeypatch, name):
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(IsADirectoryError, match=f"{name} cannot be written"):
        run(**{name: tmp_path})
    with pytest.raises(OSError, match=f"{name} cannot be written: No space left on device"):
        run(**{name: "/dev/full"})
    both = {"checkpoint": tmp_path / "a", "output": tmp_path / "deeper" / ".." / "a"}
    with pytest.raises(ValueError, match="checkpoint and output must be two files, got .*/a for both"):
        run(**both)


def test_too_little_room_for_a_checkpoint_is_noticed_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("a step was taken"))
    state, _ = run(TrainingOptions(epochs=0))
    bytes_of_state = sum(each.numel() * each.element_size() for each in state.values())
    usage = type("Usage", (), {"free": bytes_of_state - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=f"it needs {bytes_of_state} bytes, the disk has {bytes_of_state - 1} left"):
        run(checkpoint=tmp_path / "a")


def interrupt_step(monkeypatch, last: int) -> None:
    """A KeyboardInterrupt in the step after `last` whole ones."""
    step, taken = loop.train_step, []

    def interrupted(*arguments):
        taken.append(1)
        if len(taken) > last:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)


def test_an_interrupt_says_what_was_kept_and_resuming_gives_the_uninterrupted_run(tmp_path, monkeypatch):
    options = TrainingOptions(epochs=3, batch_size=64, lr=1e-2)
    steps = len(data.batches(generated().split.train, generated().interactions, 64))
    expected, _ = run(options)
    path = tmp_path / "a.pt"
    with monkeypatch.context() as patch:
        interrupt_step(patch, last=2 * steps + 1)
        with pytest.raises(Interrupted, match=f"in epoch 3 of 3: {path} keeps 2 complete epochs") as stop:
            run(options, checkpoint=path)
    assert stop.value.kept == 2
    assert isinstance(stop.value, KeyboardInterrupt)
    resumed, history = run(options, checkpoint=path, resume=True)
    assert len(history) == 3
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_an_interrupt_without_anything_kept_says_so(tmp_path, monkeypatch):
    interrupt_step(monkeypatch, last=0)
    with pytest.raises(Interrupted, match="in epoch 1 of 1: nothing was kept, as no checkpoint was asked for"):
        run()
    with pytest.raises(Interrupted, match="no epoch was complete, so nothing was written to .*a.pt"):
        run(checkpoint=tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges_stops_and_keeps_the_last_good_epoch(tmp_path, monkeypatch):
    path, options = tmp_path / "a.pt", TrainingOptions(epochs=2, batch_size=64)
    run(OPTIONS, checkpoint=path)
    good = path.read_bytes()
    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *arguments: step(*arguments) * float("nan"))
    with pytest.raises(Diverged, match=f"epoch 2 with lr 0.001: the loss must be finite, got nan .*{path} keeps"):
        run(options, checkpoint=path, resume=True)
    assert path.read_bytes() == good


def test_scores_that_are_not_finite_stop_the_run_too(tmp_path):
    with pytest.raises(Diverged, match="the scores of held-out samples must be finite, got nan"):
        run(TrainingOptions(epochs=1, batch_size=10**6, lr=1e30), checkpoint=tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_resuming_a_finished_run_still_writes_its_output(tmp_path):
    _, history = run(checkpoint=tmp_path / "a.pt")
    _, again = run(checkpoint=tmp_path / "a.pt", resume=True, output=tmp_path / "a.json")
    assert again == history
    assert (tmp_path / "a.json").exists()
