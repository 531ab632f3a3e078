"""Data to stdout, talk to stderr. The only place of the farm that prints; `rich` only where a terminal is drawn on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


class Output:
    """Where a command writes."""

    def __init__(self, *, quiet_talk: bool = False) -> None:
        self._quiet_talk = quiet_talk

    def text(self, text: str = "") -> None:
        """Write a line of data."""
        sys.stdout.write(f"{text}\n")

    def raw(self, text: str) -> None:
        """Write data as it is, at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def json(self, document: object) -> None:
        """Write the one JSON document of a command."""
        sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    def talk(self, text: str) -> None:
        """Say something that is not data."""
        if not self._quiet_talk:
            sys.stdout.flush()  # where both go to one file, they stand in the order of what happened
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def warn(self, text: str) -> None:
        """Say something that the user should act on."""
        sys.stderr.write(f"farm: warning: {text}\n")
        sys.stderr.flush()

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """Write rows of cells under headers: drawn on a terminal, else in plain aligned columns.

        Args:
            headers: column names.
            rows: cells.
            right: headers of the columns that are aligned to the right.
        """
        if on_terminal(sys.stdout):
            self._draw(headers, rows, right)
            return
        columns = list(zip(headers, *rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        for line in zip(*columns, strict=True):
            cells = [
                cell.rjust(width) if header in right else cell.ljust(width)
                for header, cell, width in zip(headers, line, widths, strict=True)
            ]
            self.text("  ".join(cells).rstrip())

    def _draw(self, headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for header in headers:
            table.add_column(header, justify="right" if header in right else "left")
        for row in rows:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        Console(file=sys.stdout, highlight=False).print(table)


# Words that mean the same wherever they stand in a table.
_STYLES = {
    "succeeded": "green",
    "cached": "green",
    "running": "cyan",
    "failed": "red",
    "blocked": "red",
    "cancelled": "yellow",
    "quarantined": "red",
    "lost": "red",
    "ok": "green",
    "fail": "red",
    "yes": "green",
}


def on_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that can draw."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
