"""The finished cells of a sweep on disk, so that an interruption loses none."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from personality.making.sweep_cell import Cell, Measures
from personality.manifests.canonical import canonical_json


class CellFile:
    """`.persona/sweeps/<key>.jsonl`: the base's measures first, then one finished cell a line, in no order.

    A line that was cut off by a crash is left out, and so is one that another version of the program wrote differently:
    what is missing is measured anew.

    Args:
        path: of the file; its folder is made when something is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base: Measures | None = None
        self._cells: dict[tuple[int, float], Cell] = {}
        content = path.read_bytes() if path.is_file() else b""
        self._whole = not content or content.endswith(b"\n")
        for line in content.split(b"\n"):
            try:
                found = json.loads(line) if line else {}
                if "base" in found:
                    self.base = Measures.model_validate(found["base"])
                elif "cell" in found:
                    self._keep(Cell.model_validate(found["cell"]))
            except (ValueError, ValidationError):
                continue

    def cell(self, examples: int, rate: float) -> Cell | None:
        """The finished cell of a dose, if there is one."""
        return self._cells.get((examples, rate))

    def add_base(self, measures: Measures) -> None:
        """Keep the base's measures."""
        self._append({"base": measures.as_json()})
        self.base = measures

    def add(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self._append({"cell": cell.as_json()})
        self._keep(cell)

    def _keep(self, cell: Cell) -> None:
        self._cells[cell.examples, cell.rate] = cell

    def _append(self, content: object) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            # After a line that was cut off, begin a new one.
            file.write((b"" if self._whole else b"\n") + canonical_json(content) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._whole = True
