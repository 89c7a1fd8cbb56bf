"""Claims about the documentation site that need no mkdocs: docstrings, links of included pages, navigation."""

from __future__ import annotations

import re

import pytest
from support.scripts import ROOT, module_of

site = module_of("tools/docs_site.py")


def test_every_public_name_is_described():
    assert list(site.undocumented()) == []


def test_a_public_name_without_a_description_is_found():
    class Undescribed:
        @property
        def width(self):
            return 1

        @classmethod
        def made(cls):
            return cls()

        def described(self):
            """Is."""

    assert not site.described(Undescribed)
    assert list(site.members_without(Undescribed)) == ["width", "made"]


def test_an_overriding_method_inherits_its_description():
    class Base:
        def forward(self):
            """Says it."""

    class Derived(Base):
        def forward(self):
            return 1

    assert list(site.members_without(Derived)) == []


@pytest.mark.parametrize(
    "link, target",
    [
        ("docs/performance.md#one-call", "performance.md#one-call"),
        ("CONTRIBUTING.md", "contributing.md"),
        ("https://arxiv.org/abs/1706.06978", "https://arxiv.org/abs/1706.06978"),
        ("#limits", "#limits"),
        ("docs/images/speed.png", "images/speed.png"),
        ("LICENSE", None),
    ],
)
def test_links_of_an_included_page_lead_to_pages_of_the_site(link, target):
    assert site.included(f"see [this]({link}).") == ("see this." if target is None else f"see [this]({target}).")


def test_every_page_is_in_the_navigation_and_every_public_module_in_the_reference():
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    pages = [page.read_text() for page in (ROOT / "docs/reference").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)}
    assert shown >= set(site.PUBLIC)


def test_a_public_name_that_the_reference_does_not_show_is_found():
    shown = "".join(f'<h2 id="{dotted}">' for dotted, _ in site.public() if not dotted.endswith(".dice"))
    assert site.unshown(shown) == ["din_kernels.dice"]
    assert site.unshown(shown + '<h2 id="din_kernels.ops.dice.dice">') == []
