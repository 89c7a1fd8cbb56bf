"""Claims about the documentation: its examples run, its links lead somewhere, its tables are the kept results."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from din_kernels.benchmarking import harness

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def report():
    """benchmarks/report.py as a module."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_examples_run_one_after_the_other():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["pooled"].shape == (2, 64)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in filter(None, links):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for name in re.findall(r"`((?:csrc|din_kernels|benchmarks|python_tests|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_kept_results(page, report):
    text = page.read_text()
    assert report.filled(text, list(harness.load().values())) == text, "run python benchmarks/report.py"
    assert not re.findall(r"<!-- table: (\w+) -->\n<!-- end -->", text), "a table without results"


def test_a_kept_result_says_where_when_and_with_what_it_was_measured():
    for path in harness.RESULTS.glob("*/*.json"):
        content = json.loads(path.read_text())
        assert set(content) >= {"benchmark", "case", "command", "machine", "rows"}, path
        assert set(content["machine"]) >= {"cpu", "cores", "threads", "torch", "commit", "date"}, path
