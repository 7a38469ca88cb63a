"""The reference of the command line is what the program says of itself."""

from __future__ import annotations

from pathlib import Path

import personality
from personality.cli.reference import reference

ROOT = Path(personality.__file__).parent.parent


def test_reference_is_up_to_date() -> None:
    written = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run `make docs`"
