"""The one place that writes to the terminal: data on stdout, hints and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from personality import processes

SCHEMA = "persona/1"
_TEXT_WIDTH = 24  # to which running text may be folded
_PIPE_WIDTH = 80  # for what is laid out in columns of its own
_PLAIN_WIDTH = 1000  # of what goes into a pipe or file: one row is one line there


class Output:
    """Where a command's result goes.

    Where several processes share a run, only the first one tells; errors are told by each, with its number.

    Args:
        command: the verb, for the JSON envelope.
        as_json: one JSON object on stdout instead of text.
    """

    def __init__(self, command: str, *, as_json: bool) -> None:
        self.command = command
        self.as_json = as_json
        self._quiet = processes.rank() > 0
        self._out = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)
        self._err = Console(stderr=True, width=None if sys.stderr.isatty() else _PLAIN_WIDTH, highlight=False)

    def result(self, data: dict[str, Any], human: Callable[[], None]) -> None:
        """Give the command's result: as JSON, or by the function that prints it for people."""
        if self._quiet:
            return
        if self.as_json:
            envelope = {"schema": SCHEMA, "command": self.command, "ok": True, "data": data}
            sys.stdout.write(json.dumps(envelope, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            human()

    @property
    def width(self) -> int:
        """Columns to lay a result out in: the terminal's, or 80 where there is none."""
        return self._out.width if sys.stdout.isatty() else _PIPE_WIDTH

    def line(self, text: str | Text = "", style: str | None = None) -> None:
        """A line of the result; square brackets are text, not markup. A `Text` brings its own colors, which `NO_COLOR`
        and pipes drop, so it must say everything without them.
        """
        self._out.print(text if isinstance(text, Text) else Text(text, style=style or ""), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; columns whose header begins with `>` are right-aligned, and empty headers make no line.

        Names, ids and figures are never cut: only running text is folded, and where that is not enough a row is
        longer than the terminal is wide.
        """
        table = Table(box=None, pad_edge=False, show_header=any(columns), header_style="bold")
        needed = 2 * (len(columns) - 1)
        for index, column in enumerate(columns):
            header = column.lstrip(">")
            right = header != column
            whole = right or index == 0 or header == "id"
            justify: Literal["left", "right"] = "right" if right else "left"
            table.add_column(header, justify=justify, overflow="fold", no_wrap=whole)
            widest = max(cell_len(text) for text in (header, *(row[index] for row in rows)))
            needed += widest if whole else min(widest, _TEXT_WIDTH)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console = Console(width=max(self._out.width, needed), highlight=False)
        with console.capture() as captured:
            console.print(table)
        # Cells are padded to their column; what goes into a file or a pipe should not end in spaces.
        lines = captured.get().splitlines()
        sys.stdout.write("".join(f"{line if sys.stdout.isatty() else line.rstrip()}\n" for line in lines))

    @contextlib.contextmanager
    def replies(self, labels: Sequence[str]) -> Iterator[Callable[[str, str], None] | None]:
        """Texts that grow while the block runs: one as it comes, several side by side on a terminal.

        Args:
            labels: of the texts, in order.

        Yields:
            A function to call with a label and the next piece of its text; None where whole texts are wanted later.
        """
        if self.as_json or self._quiet or (len(labels) > 1 and not sys.stdout.isatty()):
            yield None
        elif len(labels) == 1:
            yield lambda _, piece: self._piece(piece)
            self._piece("\n")
        else:
            texts = dict.fromkeys(labels, "")

            def grow(label: str, piece: str) -> None:
                texts[label] += piece
                live.update(_columns(texts))

            with Live(_columns(texts), console=self._out, refresh_per_second=12) as live:
                yield grow

    def _piece(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark on stderr: never part of the data."""
        if not self.as_json and not self._quiet:
            self._err.print(Text(text, style="dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning on stderr."""
        if self._quiet:
            return
        self._err.print(Text.assemble(("warning: ", "bold yellow"), text), soft_wrap=True)

    def error(self, message: str, hint: str, *, kind: str, exit_code: int) -> None:
        """An error: on stderr for people, in the JSON envelope for programs."""
        if self._quiet:
            message = f"[process {processes.rank()}] {message}"
        elif self.as_json:
            error = {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}
            envelope = {"schema": SCHEMA, "command": self.command, "ok": False, "error": error}
            sys.stdout.write(json.dumps(envelope, indent=1, ensure_ascii=False) + "\n")
            return
        self._err.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)
        if hint:
            self._err.print(Text.assemble(("hint: ", "bold"), hint), soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[float, float, str], None]]:
        """A bar on stderr while the block runs, on a terminal only.

        Yields:
            A function to call with done, total and a short text.
        """
        if self.as_json or self._quiet or not sys.stderr.isatty():
            yield lambda done, total, text: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(what, total=None, text="")
            yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


def _columns(texts: dict[str, str]) -> Table:
    """Texts beside each other, each under its label."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for label in texts:
        table.add_column(Text(label), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in texts.values()))
    return table


def megabytes_per_second(started: float, done: int) -> str:
    """Such as `1.2 GB, 310 MB/s`, for a bar."""
    seconds = max(time.monotonic() - started, 1e-6)
    return f"{size(done)}, {done / seconds / 1e6:.0f} MB/s"


def size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def sides_text(sides: dict[str, int]) -> str:
    """How many examples of each side, such as `140 accept, 60 push_back`; empty when none says."""
    return ", ".join(f"{count} {side}" for side, count in sorted(sides.items()) if count and side != "unlabeled")


def percent(value: float) -> str:
    """0.953 as `95%`; one decimal only where it matters."""
    shown = value * 100
    return f"{shown:.0f}%" if abs(shown - round(shown)) < 0.05 else f"{shown:.1f}%"
