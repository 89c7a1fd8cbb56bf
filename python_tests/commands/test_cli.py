"""Claims about the console script."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from din_kernels import backends, cli, data, verification
from din_kernels.commands import check
from din_kernels.commands import train as train_command


def run(*arguments) -> int:
    return cli.main([str(each) for each in arguments])


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture
def small_data(monkeypatch):
    """Generated data of 120 users instead of thousands."""
    monkeypatch.setattr(
        train_command, "load_data", lambda path, seed, tuning=False, **size: data.generate(seed=seed, users=120)[:2]
    )


def test_info_tells_versions_and_for_every_backend_whether_it_runs(capsys):
    assert run("info") == 0
    text = capsys.readouterr().out
    for expected in ("din-kernels", "torch", torch.__version__.split("+")[0], *backends.NAMES, "query_to_user"):
        assert expected in text


def test_check_passes_on_this_machine(capsys):
    status = run("check", "--quick")
    text = one_line(capsys.readouterr().out)
    if backends.unavailable("cpu") is not None:
        assert status == 1 and "0 cases checked" in text
        return
    assert status == 0, text
    assert "0 of" in text and "FAILED" not in text


def test_check_fails_on_a_wrong_kernel(monkeypatch, capsys):
    right = verification.results

    def wrong(case, backend, dtype, device="cpu"):
        found = right(case, "reference", dtype, device)
        if backend == "cpu":
            found["grad query"] = found["grad query"] * (1 + 1e-4)
        return found

    monkeypatch.setattr(verification, "results", wrong)
    monkeypatch.setattr(backends, "unavailable", lambda name: None if name in ("cpu", "reference") else "no")
    assert run("check", "--quick", "--backend", "cpu") == 1
    assert "FAILED" in capsys.readouterr().out


def test_check_fails_on_nan(monkeypatch):
    right = verification.results

    def wrong(case, backend, dtype, device="cpu"):
        found = right(case, "reference", dtype, device)
        if backend == "cpu":
            found["pooled"][0] = float("nan")
        return found

    monkeypatch.setattr(verification, "results", wrong)
    rows = list(check.check_backend("cpu", quick=True))
    assert rows and not any(row.passed for row in rows)


def test_the_reference_passes_its_own_check():
    case = verification.make_case("outer", "dice", "softmax", "masked")
    assert all(each.ratio <= 1 for each in verification.deviations(case, "reference", torch.float32))


def test_train_writes_history_and_checkpoint_and_resumes(small_data, tmp_path, capsys):
    common = ("train", "--model", "din", "--batch-size", 64, "--checkpoint", tmp_path / "a.pt", "--base-auc", 0.6)
    assert run(*common, "--epochs", 1, "--output", tmp_path / "one.json") == 0
    assert run(*common, "--epochs", 2, "--resume", "--output", tmp_path / "two.json") == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert len(two) == 2 and two[0] == one[0]
    assert "held-out metrics" in capsys.readouterr().out


def test_train_takes_backend_recipe_and_options(small_data, tmp_path):
    output = tmp_path / "h.json"
    assert run("train", "--recipe", "paper", "--lr", 0.1, "--backend", "reference", "--output", output) == 0
    assert len(json.loads(output.read_text())) == 1
    assert run("train", "--model", "embedding-mlp", "--optimizer", "adagrad", "--epochs", 1) == 0
    assert run("train", "--optimizer", "sparse-adagrad", "--mba", 0.01, "--epochs", 1) == 0
    assert run("train", "--optimizer", "adagrad", "--l2", 1e-5, "--epochs", 1) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--data", "/no/such/path"), "path must exist"),
        (("train", "--mba", 0.1, "--optimizer", "adam"), "mba needs one of the optimizers sparse-adam"),
        (("train", "--recipe", "unheard"), "config must be a file or one of"),
        (("train", "--recipe", "paper", "--config", "x.json"), "exclude each other"),
        (("train", "--epochs", "-1"), "epochs must be at least 0"),
        (("train", "--resume"), "checkpoint must be given"),
        (("train", "--backend", "cuda"), "cannot serve"),
        (("train", "--tuning"), "tuning needs data from files"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, message, capsys):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("cuda serves")
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("din-kernels train: ") and message in error


def test_unknown_command_is_refused():
    with pytest.raises(SystemExit) as stopped:
        run("fly")
    assert stopped.value.code == 2


def test_module_runs_as_a_script():
    done = subprocess.run(
        [sys.executable, "-m", "din_kernels", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("din-kernels ")


@pytest.mark.slow
def test_demo_prints_its_tables_and_writes_its_plots(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    status = run("demo", "--output", tmp_path, "--epochs", 1, "--users", 400, "--rounds", 1, "--without-compile")
    text = one_line(capsys.readouterr().out)
    assert status == 0
    assert "held-out metrics" in text and "padded, eager" in text
    for name in ("auc.png", "speed.png", "weights.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
