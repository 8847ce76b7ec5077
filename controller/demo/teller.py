"""The story's voice: a line an event, with the seconds since the start and a tick where something was verified."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Final

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

CHAPTER_WIDTH: Final = 8
CLOCK_WIDTH: Final = 7
NARROW: Final = 60


class Teller:
    """Writes to standard output: in colour on a terminal, where long lines wrap under their text; plain elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._began = time.monotonic()
        self._chapter = ""
        self._status: Status | None = None
        ascii_only = not self.console.encoding.lower().startswith("utf")
        self._marks = {"verified": "ok", "failed": "!!"} if ascii_only else {"verified": "✓", "failed": "✗"}

    @property
    def seconds(self) -> float:
        """Since the story began."""
        return time.monotonic() - self._began

    def title(self, text: str) -> None:
        self.console.print(Text(text, "bold"), soft_wrap=not self.console.is_terminal)
        self.console.print()

    def chapter(self, word: str) -> None:
        """The next line begins it."""
        self._chapter = word

    def say(self, text: str) -> None:
        """Something happened, or is about to."""
        self._line(text, "")

    def verified(self, text: str) -> None:
        """Something was checked and is so."""
        self._line(text, "verified")

    def failed(self, text: str) -> None:
        """Something was checked and is not so."""
        self._line(text, "failed")

    def more(self, text: str) -> None:
        """The line before this one goes on."""
        self._line(text, "", clock="")

    def plain(self, text: str = "", style: str = "") -> None:
        """A line outside the story's columns."""
        self.console.print(Text(text, style), soft_wrap=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """On a terminal a line that goes away with the block; elsewhere nothing."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield
            return
        with self.console.status(Text(text, "dim"), spinner="line") as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None

    def progress(self, text: str) -> None:
        """What the line that waits says from now on."""
        if self._status is not None:
            self._status.update(Text(text, "dim"))

    def _line(self, text: str, kind: str, clock: str | None = None) -> None:
        mark = self._marks.get(kind, "")
        style = {"verified": "green", "failed": "bold red"}.get(kind, "")
        chapter, self._chapter = self._chapter, ""
        clock = f"{self.seconds:5.1f} s" if clock is None else clock
        width = max(map(len, self._marks.values()))
        if not self.console.is_terminal:
            self.plain(f"{chapter:<{CHAPTER_WIDTH}} {clock:<{CLOCK_WIDTH}} {mark:<{width}} {text}".rstrip())
            return
        grid = Table.grid(padding=(0, 1))
        if self.console.width >= NARROW:
            grid.add_column(width=CHAPTER_WIDTH, no_wrap=True, style="bold cyan")
        grid.add_column(width=CLOCK_WIDTH, no_wrap=True, style="dim")
        grid.add_column(width=width, no_wrap=True, style=style)
        grid.add_column(style=style if kind == "failed" else "")
        cells: list[str | Text] = [clock, mark, Text(text)]
        grid.add_row(*([chapter, *cells] if self.console.width >= NARROW else cells))
        self.console.print(grid)


def dollars(amount: Decimal) -> str:
    return f"${amount:,.2f}"


def milliseconds(start: datetime, end: datetime) -> str:
    """The time between, as people say it."""
    return f"{(end - start).total_seconds() * 1000:,.0f} ms"
