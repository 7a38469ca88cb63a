"""Medians, ratios and a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    print(f"| {' | '.join(columns)} |")
    print(f"|{'|'.join('---' for _ in columns)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
