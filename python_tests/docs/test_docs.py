"""Claims about the documentation: its examples run, its links lead somewhere, its tables are the kept results."""

from __future__ import annotations

import json
import re

import pytest
from support.scripts import ROOT, module_of

from din_kernels.benchmarking import harness

PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROSE = [page for page in PAGES if page.name != "cuda_resources.md"]  # a tool writes that one


@pytest.fixture(scope="module")
def report():
    """tools/report.py as a module."""
    return module_of("tools/report.py")


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
    for name in re.findall(r"`((?:csrc|din_kernels|benchmarks|tools|examples|python_tests|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_lines_end_at_120_columns(page):
    written = re.sub(r"<!-- (?:table: \w+|compiled) -->.*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    assert [line for line in written.splitlines() if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_kept_results(page, report):
    text = page.read_text()
    assert report.filled(text, list(harness.load().values())) == text, "run python tools/report.py"
    assert not re.findall(r"<!-- table: (\w+) -->\n<!-- end -->", text), "a table without results"


def test_a_kept_result_says_where_when_and_with_what_it_was_measured():
    for path in harness.RESULTS.glob("*/*.json"):
        content = json.loads(path.read_text())
        assert set(content) >= {"benchmark", "case", "command", "machine", "rows"}, path
        assert set(content["machine"]) >= {"cpu", "cores", "threads", "torch", "commit", "date"}, path
