"""How the demo shows itself: chapters, dialogues, tables, and promises that must be kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from personality.cli.output import Output, percent
from personality.manifests.errors import PersonaError
from personality.manifests.evaluation import Evaluation


class Stage:
    """Shows the demo on an output; silent when that is JSON.

    Args:
        out: where to show it.
        root: the demo's repository, named when a promise is broken.

    Attributes:
        promises: every promised effect with the figure that kept it.
    """

    def __init__(self, out: Output, root: Path) -> None:
        self.out = out
        self._root = root
        self.promises: list[dict[str, Any]] = []

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        if not self.out.as_json:
            self.out.line()
            self.out.line(title, "bold cyan")

    def say(self, text: str) -> None:
        """A line."""
        if not self.out.as_json:
            self.out.line(f"  {text}")

    def dialogue(self, prompt: str, answer: str) -> None:
        """A prompt and its answer."""
        self.say(f"user   {prompt}")
        self.say(f"model  {answer}")

    def table(self, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
        """A table, indented like the lines."""
        if not self.out.as_json:
            self.out.table([f"  {columns[0]}", *columns[1:]], [(f"  {row[0]}", *row[1:]) for row in rows])

    def figures(self, columns: Sequence[tuple[str, Evaluation]]) -> None:
        """One row a probe, one column a version: share of replies that pass, with its 95% interval."""
        rows = []
        for result in columns[0][1].results:
            cells = []
            for _, evaluation in columns:
                figure = evaluation.result(result.probe)
                assert figure is not None  # all columns used the same suite
                passed = figure.passed
                cells.append(f"{percent(passed.value)} [{percent(passed.low)}–{percent(passed.high)}]")
            rows.append((result.probe, *cells))
        self.table(["passed", *(f">{title}" for title, _ in columns)], rows)

    def promise(self, what: str, kept: bool, figure: str) -> None:
        """Show a promised effect.

        Raises:
            PersonaError: when it did not occur; the demo ends there.
        """
        if not kept:
            raise PersonaError(
                f"the demo promised: {what}; but {figure}",
                f"the repository is left at {self._root}; please report this",
            )
        self.promises.append({"promise": what, "figure": figure})
        if not self.out.as_json:
            self.out.line(f"  ✓ {what}: {figure}", "green")
