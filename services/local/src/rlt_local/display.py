"""How a stack is shown: a table that is redrawn in a terminal, a line a change elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rlt_local.state import ComponentRecord, ComponentState, StackRecord, StackState

__all__ = ["Screen", "failure", "over", "summary", "table"]

MARKS = {
    ComponentState.waiting: ("·", "dim"),
    ComponentState.ready: ("✓", "green"),
    ComponentState.done: ("✓", "green"),
    ComponentState.restarting: ("↻", "yellow"),
    ComponentState.stopped: ("■", "dim"),
    ComponentState.failed: ("✗", "red"),
}
_SPINNER = Spinner("dots", style="cyan")  # one for all rows: its frame follows the clock


def table(record: StackRecord) -> Table:
    rows = Table(box=None, padding=(0, 1), show_header=False)
    for name, component in record.components.items():
        rows.add_row(
            _mark(component), name, _seconds(component), component.url or "", Text(component.note, style="dim")
        )
    return rows


def _mark(component: ComponentRecord) -> RenderableType:
    if component.state is ComponentState.starting:
        return _SPINNER
    mark, style = MARKS[component.state]
    return Text(mark, style=style)


def _seconds(component: ComponentRecord) -> Text:
    if component.state is ComponentState.starting and component.started:
        return Text(f"{time.time() - component.started:.0f} s", style="cyan")
    if component.took is None:
        return Text("")
    return Text(f"{component.took:.1f} s", style="dim")


class Screen:
    """Shows a record whenever it is given one. While the stack starts: a table; after that: what changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._seen: dict[str, ComponentState] = {}
        self._state: StackState | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # no thread of its own: programs are started from this process, and a fork beside a thread is a risk
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_table()

    def __call__(self, record: StackRecord) -> None:
        if self._live is not None:
            self._live.update(table(record), refresh=True)
        elif record.state in (StackState.starting, StackState.ready):
            self._tell_changes(record)
        if record.state is not self._state:
            self._enter(record)
        self._seen = {name: component.state for name, component in record.components.items()}

    def _enter(self, record: StackRecord) -> None:
        self._state = record.state
        if record.state is not StackState.starting:
            self._end_table()
        if record.state is StackState.stopping:
            self._console.print("Stopping; Ctrl-C once more kills what is left.", style="dim")
        elif record.state is StackState.stopped:
            self._console.print("Stopped.", style="dim")

    def _tell_changes(self, record: StackRecord) -> None:
        for name, component in record.components.items():
            if component.state is not self._seen.get(name, ComponentState.waiting):
                self._console.print(_line(name, component), highlight=False, markup=False)

    def _end_table(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _line(name: str, component: ComponentRecord) -> str:
    ready = component.state in (ComponentState.ready, ComponentState.done)
    took = f" after {component.took:.1f} s" if ready and component.took and not component.restarts else ""
    return f"{name}: {component.state}{took}{f' ({component.note})' if component.note else ''}"


def summary(record: StackRecord) -> RenderableType:
    """What to do with a stack that is up."""
    rows = Table.grid(padding=(0, 2))
    for name, url in record.urls.items():
        rows.add_row(Text(name, style="bold"), url, Text(f"{url}/openapi.json", style="dim"))
    rows.add_row(Text("key", style="bold"), Text(record.key_file, style="dim"))
    return rows


def failure(record: StackRecord) -> RenderableType:
    """Why a stack did not come up, with the last words of the program to blame."""
    words = "\n".join(f"  {line}" for line in record.error_log)
    return Text.assemble((f"{record.error or 'the stack did not start'}\n", "bold red"), (words, "dim"))


def over(record: StackRecord) -> bool:
    return record.state in (StackState.stopped, StackState.failed)
