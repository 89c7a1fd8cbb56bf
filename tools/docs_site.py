"""What `make docs` does beside rendering: checks the public API's docstrings, and brings README and its kin in.

mkdocs loads this file as hooks (mkdocs.yml). A page of docs/ that is `<!-- include: FILE -->` shows that FILE of the
checkout.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = ("din_kernels", *(f"din_kernels.{name}" for name in ("nn", "optim", "models", "data", "training")))
INCLUDE = re.compile(r"<!-- include: (\S+) -->\s*")
INCLUDED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def public() -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every public function and class."""
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                yield f"{module_name}.{name}", value


def undocumented() -> Iterator[str]:
    """Dotted names of the public API without a docstring of their own: functions, classes and their public members."""
    for dotted, value in public():
        if not described(value):
            yield dotted
        if inspect.isclass(value):
            yield from (f"{dotted}.{member}" for member in members_without(value))


def unshown(pages: str) -> list[str]:
    """Public names that the reference's HTML has no entry of, under the public name or where they are defined."""
    return [
        dotted
        for dotted, value in public()
        if not any(f'id="{name}"' in pages for name in (dotted, f"{value.__module__}.{value.__name__}"))
    ]


def members_without(kind: type) -> Iterator[str]:
    """Public methods and properties that a class of ours defines itself and does not describe.

    An override inherits the description of what it overrides where that is ours, torch's or Python's.
    """
    for name, value in vars(kind).items():
        value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
            continue
        if value.__doc__ is None and not any(name in vars(base) for base in kind.__mro__[1:]):
            yield name


def described(value: object) -> bool:
    """Whether an object has a docstring that somebody wrote: a dataclass is given its signature as one."""
    text = getattr(value, "__doc__", None)
    return bool(text and text.strip()) and not text.startswith(f"{getattr(value, '__name__', '')}(")


def site_link(target: str) -> str | None:
    """Where a link of a file at the top of the checkout leads on the site; None where the site has no such page."""
    path, hash_mark, anchor = target.partition("#")
    if "://" in target or not path:
        return target
    if path in INCLUDED:
        return INCLUDED[path] + hash_mark + anchor
    return path.removeprefix("docs/") + hash_mark + anchor if path.startswith("docs/") else None


def included(text: str) -> str:
    """A file of the checkout as a page: its links lead to pages of the site, or become plain text."""

    def moved(match: re.Match) -> str:
        target = site_link(match[2])
        return match[1] if target is None else f"[{match[1]}]({target})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", moved, text)


def refuse(what: str, names: list[str]) -> None:
    """Stops the build where there are such names."""
    from mkdocs.exceptions import PluginError

    if names:
        raise PluginError(f"{what}: {', '.join(names)}")


def on_pre_build(config, **_) -> None:
    refuse("public names without a docstring", list(undocumented()))


def on_page_markdown(markdown: str, **_) -> str:
    """The page, or the file that it includes."""
    match = INCLUDE.fullmatch(markdown)
    return included((ROOT / match[1]).read_text()) if match else markdown


def on_post_build(config, **_) -> None:
    pages = "".join(page.read_text() for page in Path(config.site_dir, "reference").glob("*.html"))
    refuse("public names that docs/reference does not show", unshown(pages))
