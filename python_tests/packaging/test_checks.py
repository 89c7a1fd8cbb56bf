"""Claims about the checks around the code: git hooks run what make runs, types reach users."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from support.scripts import ROOT

needs_checkout = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="needs the checkout")


def recipe(target: str) -> list[str]:
    """Commands of a target of the Makefile, as they read with the default virtual environment."""
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1].splitlines()
    return [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" $(FORMATTED)") for line in lines]


@needs_checkout
def test_the_git_hooks_run_exactly_what_make_lint_runs():
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    assert hooks == recipe("lint")


@needs_checkout
def test_ci_builds_the_documentation_strictly():
    assert "make docs" in (ROOT / ".ci" / "run").read_text()
    assert recipe("docs") == ["NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict"]


def test_the_package_says_that_it_has_types():
    assert resources.files("din_kernels").joinpath("py.typed").is_file()
