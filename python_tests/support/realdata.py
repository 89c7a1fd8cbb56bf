"""Where the real data sets lie, for tests marked `realdata`."""

from __future__ import annotations

from pathlib import Path

import pytest

from din_kernels import config


def folder(name: str) -> Path:
    """The folder of data set `name`; skips the test, with the reason, where it is absent."""
    path = config.data_folder() / name
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (DIN_KERNELS_TEST_DATA names another folder)")
    return path


@pytest.fixture(scope="session")
def amazon_beauty() -> Path:
    """Folder of the complete Beauty 5-core: `seq.txt`, `item_cate.txt`."""
    return folder("amazon_beauty")


@pytest.fixture(scope="session")
def amazon_electronics() -> Path:
    """Folder of the Electronics sample: `seq_union.txt`, `seq_random5000.txt`, `item_cate.txt`, released rows."""
    return folder("amazon_electronics")
