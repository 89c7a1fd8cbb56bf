"""Where the real data sets lie, for tests marked `realdata`."""

from __future__ import annotations

from pathlib import Path

import pytest

from din_kernels import config


def folder(name: str) -> Path:
    """The folder of data set `name`; skips the test, with the reason, where it is absent."""
    try:
        return config.data_set(name)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def amazon_beauty() -> Path:
    """Folder of the complete Beauty 5-core: `seq.txt`, `item_cate.txt`."""
    return folder("amazon_beauty")


@pytest.fixture(scope="session")
def amazon_electronics() -> Path:
    """Folder of the Electronics sample: `seq_union.txt`, `seq_random5000.txt`, `item_cate.txt`, released rows."""
    return folder("amazon_electronics")
