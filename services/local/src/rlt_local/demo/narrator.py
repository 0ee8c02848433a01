"""How the demo speaks: numbered chapters, short paragraphs, the command for every step, and what it took."""

from __future__ import annotations

import time

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

__all__ = ["Narrator"]

LONGEST_LINE = 110  # paragraphs are read; tables, strips and commands may be wider


class Narrator:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.took: dict[str, float] = {}
        self._chapter = ""
        self._begun = time.monotonic()

    def chapter(self, title: str) -> None:
        """End the chapter before, and begin one."""
        self.end_chapter()
        self._chapter = title
        self.console.print()
        self.console.rule(Text(f" {len(self.took) + 1}  {title} ", style="bold"), align="left", style="dim")

    def end_chapter(self) -> None:
        if self._chapter:
            self.took[self._chapter] = time.monotonic() - self._begun
        self._chapter, self._begun = "", time.monotonic()

    def say(self, text: str) -> None:
        self._print(Text(text))

    def command(self, text: str) -> None:
        """What one would type for the same. Never wrapped: it is there to be copied."""
        self.console.print(Text(f"$ {text}", style="cyan"), soft_wrap=True)

    def result(self, text: str) -> None:
        self._print(Text.assemble(("→ ", "green"), text))

    def verdict(self, text: str, *, good: bool) -> None:
        mark, style = ("✓ ", "green") if good else ("✗ ", "bold red")
        self._print(Text.assemble((mark, style), text))

    def show(self, thing: RenderableType) -> None:
        self.console.print(Padding(thing, (1, 0, 0, 2)))

    def gap(self) -> None:
        self.console.print()

    def _print(self, text: Text) -> None:
        self.console.print(text, width=min(LONGEST_LINE, self.console.width))
