"""Claims about mistakes on the command line: one line on stderr, status 2, before training, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from din_kernels import cli, data
from din_kernels.commands import demo, info
from din_kernels.commands import train as train_command
from din_kernels.training import loop


def run(*arguments) -> int:
    return cli.main([str(each) for each in arguments])


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_data(monkeypatch):
    """Generated data of 40 users instead of thousands."""

    def load(path, seed, tuning=False, **size):
        return data.generate(seed=seed, users=40)[:2]

    monkeypatch.setattr(train_command, "load_data", load)


@pytest.fixture
def no_data(monkeypatch):
    """Fails where data are read: what is wrong on the command line is told before that."""
    monkeypatch.setattr(train_command, "load_data", lambda *_, **more: pytest.fail("data were read"))
    monkeypatch.setattr(demo, "load_data", lambda *_, **more: pytest.fail("data were read"))


def told(capsys, command: str) -> str:
    """The one line on stderr, without the command."""
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert line.startswith(f"din-kernels {command}: ")
    return line.removeprefix(f"din-kernels {command}: ")


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "foo"), "device must be a torch device of this machine, got 'foo': "),
        (("--device", "meta"), "device must be a torch device of this machine, got 'meta': "),
        (("--lr", "1e300"), "lr must be positive and finite in float32, got 1e+300"),
        (("--lr", "nan"), "lr must be finite, got nan"),
        (("--lr", "-1"), "lr must be positive and finite in float32, got -1.0"),
        (("--epochs", "-1"), "epochs must be at least 0, got -1"),
        (("--batch-size", "0"), "batch_size must be at least 1, got 0"),
        (("--seed", "-1"), "seed must lie in 0..2^63 - 1, got -1"),
        (("--seed", 10**30), "seed must lie in 0..2^63 - 1, got 1000000000000000000000000000000"),
        (("--mba", "nan", "--optimizer", "sparse-sgd"), "mba must be finite, got nan"),
        (("--l2", "inf"), "l2 must be finite, got inf"),
        (("--base-auc", "nan"), "base-auc must lie in 0..1, got nan"),
        (("--base-auc", "7"), "base-auc must lie in 0..1, got 7.0"),
        (("--checkpoint", "."), ".: checkpoint cannot be written: Is a directory"),
        (("--output", "."), ".: output cannot be written: Is a directory"),
        (("--checkpoint", "/dev/null/a"), "/dev/null/a: checkpoint cannot be written: Not a directory"),
        (("--output", "/dev/full"), "/dev/full: output cannot be written: No space left on device"),
        (("--output", "/proc/a"), "/proc/a: output cannot be written: No such file or directory"),
        (("--checkpoint", "a", "--output", "a"), "checkpoint and output must be two files, got a for both"),
        (("--resume",), "checkpoint must be given to resume, got None"),
        (("--config", "."), "config must be a file or one of amazon_beauty, generated, paper, got ."),
        (("--epochs", "x"), "argument --epochs: invalid int value: 'x' (--help lists the options)"),
    ],
)
def test_train_tells_a_mistake_in_one_line_before_data_are_read(arguments, message, capsys, tmp_path):
    try:
        status = run("train", *arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert told(capsys, "train").startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--rounds", "0"), "rounds must be at least 1, got 0"),
        (("demo", "--epochs", "0"), "epochs must be at least 1, got 0"),
        (("demo", "--output", "/dev/null"), "/dev/null/auc.png: plot cannot be written: Not a directory"),
        (("demo", "--seed", "-1"), "seed must lie in 0..2^63 - 1, got -1"),
        (("bench", "fast"), "shape must be one of 'uniform100', "),
        (("bench", "--seconds", "nan"), "seconds must be at least 0 and finite, got nan"),
        (("check", "--backend", "x"), "argument --backend: invalid choice: 'x'"),
        (("info", "--device", "x"), "argument --device: invalid choice: 'x'"),
    ],
)
def test_every_subcommand_tells_a_mistake_in_one_line(arguments, message, capsys, tmp_path):
    if arguments[0] == "demo":
        pytest.importorskip("matplotlib")
    try:
        status = run(*arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert told(capsys, arguments[0]).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_or_data_that_would_be_written_over_is_refused(no_data, capsys, tmp_path):
    model = {"tables": {}, "candidate": {}, "histories": {}}
    (tmp_path / "a.json").write_text(json.dumps({"model": model, "training": {}}))
    before = (tmp_path / "a.json").read_text()
    assert run("train", "--config", "a.json", "--output", "./a.json") == 2
    assert told(capsys, "train") == "output must not be a file that is read, got a.json"
    assert run("train", "--data", "a.json", "--checkpoint", "a.json") == 2
    assert told(capsys, "train") == "checkpoint must not be a file that is read, got a.json"
    assert (tmp_path / "a.json").read_text() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint (the file is empty)"),
        (b"text", "not a readable checkpoint (4 bytes that torch.save did not write)"),
        ([1], "a checkpoint must hold a dict, got list"),
    ],
)
def test_a_broken_checkpoint_is_one_line_with_path_and_reason(small_data, tmp_path, capsys, content, message):
    (tmp_path / "a.pt").write_bytes(content) if isinstance(content, bytes) else torch.save(content, "a.pt")
    assert run("train", "--checkpoint", "a.pt", "--resume") == 2
    captured = capsys.readouterr().err.splitlines()
    assert captured == [f"din-kernels train: a.pt: {message}"]


def test_a_model_that_does_not_suit_the_data_names_its_recipe(small_data, tmp_path, capsys):
    model = {"tables": {"item": {"rows": 5, "dim": 4}}, "candidate": {"item": "item"}}
    recipe = {"model": model | {"histories": {"behaviours": [["item", "item"]]}}, "training": {}}
    (tmp_path / "a.json").write_text(json.dumps(recipe))
    assert run("train", "--config", "a.json") == 2
    assert told(capsys, "train") == "a.json: tables['item'] must have a row for each of the 3200 items, got 5 rows"
    recipe["model"]["tables"]["item"] = {"rows": "items", "dim": 10**15}
    (tmp_path / "a.json").write_text(json.dumps(recipe))
    assert run("train", "--config", "a.json") == 2
    assert told(capsys, "train").startswith("a.json: ")


def test_histories_too_short_to_train_on_are_refused_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "seq.txt").write_text("7 30 10\n3 20 30\n5 10\n")
    (tmp_path / "item_cate.txt").write_text("10 100\n20 500\n30 100\n40 900\n")
    assert run("train", "--data", tmp_path, "--output", "a.json") == 2
    expected = "the split has no training samples: a split trains on users with at least 3 behaviours, got 3 users with"
    assert told(capsys, "train").startswith(expected)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["item_cate.txt", "seq.txt"]


def test_undefined_metrics_are_told_below_the_table(small_data, tmp_path, capsys):
    assert run("train", "--epochs", 1, "--base-auc", 0.5, "--output", "a.json") == 0
    assert "din: rela_impr not defined, base_auc must differ from 0.5" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert record["rela_impr"] is None


def test_divergence_is_one_line_and_writes_nothing(small_data, tmp_path, capsys):
    assert run("train", "--lr", 1e30, "--checkpoint", "a.pt", "--output", "a.json") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("din-kernels train: epoch 1 with lr 1e+30: ") and "must be finite, got nan" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoint", "output"])
def test_a_disk_that_fills_in_training_is_one_line_and_leaves_nothing_half_written(
    small_data, tmp_path, capsys, monkeypatch, name
):
    synced = os.fsync

    def full(handle):
        if os.fstat(handle).st_size > 4096 or name == "output" and 0 < os.fstat(handle).st_size < 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert run("train", "--epochs", 1, f"--{name}", "a") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"din-kernels train: a: {name} cannot be written: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_what_was_kept_and_how_to_resume(small_data, tmp_path, capsys, monkeypatch):
    step, taken = loop.train_step, []

    def interrupted(*arguments):
        taken.append(1)
        if len(taken) == 2:  # the first of epoch 2
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        assert run("train", "--epochs", 2, "--checkpoint", "a.pt") == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "din-kernels train: interrupted in epoch 2 of 2: a.pt keeps 1 complete epoch; "
        "the same command with --resume goes on from there"
    )
    assert run("train", "--epochs", 2, "--checkpoint", "a.pt", "--resume", "--output", "a.json") == 0
    assert len(json.loads((tmp_path / "a.json").read_text())) == 2


def test_ctrl_c_without_a_checkpoint_says_that_nothing_was_kept(small_data, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_step", interrupted)
    assert run("train") == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "din-kernels train: interrupted in epoch 1 of 3: nothing was kept, as no checkpoint was asked for"
    )


def test_ctrl_c_in_another_subcommand_is_one_line(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert run("info") == 130
    assert told(capsys, "info") == "interrupted: nothing was kept"


def test_output_that_nobody_takes_is_no_traceback():
    command = f"{sys.executable} -m din_kernels info"
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr) == (2, "din-kernels info: No space left on device\n")
    closed = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True, check=False)
    assert closed.stderr == ""
