"""The results of a GPU: one file per chip, to which each run adds what it measured."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from din_kernels import files

# Which entries tell the rows of a list of results apart.
ROW_NAMES = {"rows": ("shape",), "dice": ("shape", "dtype"), "step": ("precision",)}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with what `new` measured; a row that `new` skipped stays as it was."""
    result = old | new
    result["parts"] = old.get("parts", {}) | new.get("parts", {})
    for key, names in ROW_NAMES.items():
        rows: dict[str, Any] = {}
        for row in (*old.get(key, ()), *new.get(key, ())):
            at = str([row[name] for name in names])
            if "variants" in row or at not in rows:
                rows[at] = row
        if rows:
            result[key] = list(rows.values())
    return result


class Record:
    """The results of one chip, in one file that is written whenever something is added."""

    def __init__(self, folder: Path, chip: str, about: dict[str, Any]):
        self.began = time.monotonic()
        folder = folder / "".join(c if c.isalnum() else "-" for c in chip.lower())
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "gpu_check.json"
        known = {"benchmark": "gpu_check", "case": chip, "command": "python tools/gpu_check.py", "rows": []} | about
        old = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.result = merged(old, known)

    def keep(self, part: str | None = None, **found: Any) -> None:
        """Adds results of a part, with the commit and date they are of."""
        new = dict(found)
        if part is not None:
            own = {name: self.result["machine"][name] for name in ("commit", "date")}
            new["parts"] = {part: own}
            new |= {key: [row | own for row in new[key]] for key in ROW_NAMES if key in new}
        self.result = merged(self.result, new) | {"seconds": round(time.monotonic() - self.began, 1)}
        files.write_json(self.path, self.result)
