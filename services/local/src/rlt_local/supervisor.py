"""Starts the programs of a stack in order, keeps them running, and stops them in reverse.

Written here because no library gives what a stack on a laptop needs at once: readiness asked for rather than slept for
(supervisor, circus and honcho know only that a process exists), an end of everything when the supervisor itself is
killed (none sets PR_SET_PDEATHSIG), restarts, and use from Python without a daemon or a configuration file of its own.
mirakuru waits for readiness, but blocks, and neither restarts nor survives its own SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence

from rlt_local.component import Component
from rlt_local.logs import set_aside, tail
from rlt_local.state import ComponentState, StackRecord, StackState, StateFolder
from rlt_service.children import Child, Children, Pauses, ending

PROBE_PAUSE = 0.1
NOTE_PAUSE = 0.5  # a starting program's note is written at most this often
FIRST_PAUSE = 0.5  # before a program that ended is started again; twice as long each time
LAST_WORDS = 20  # lines of a program that failed

Changed = Callable[[StackRecord], None]


class _Stop(Exception):
    """Somebody asked for the end."""


class StartFailed(Exception):
    """A program ended, or was not ready in time, before the stack was up."""

    def __init__(self, component: str, reason: str, log: list[str]) -> None:
        super().__init__(f"{component} {reason}")
        self.log = log


class Supervisor:
    """Runs one stack.

    Args:
        components: the programs; each may need earlier ones only.
        folder: where logs and the record go. The caller holds its lock.
        record: filled in and written at every change.
        changed: called with the record after each write.
        start_timeout: seconds until all of them must be ready.
    """

    def __init__(
        self,
        components: Sequence[Component],
        folder: StateFolder,
        record: StackRecord,
        *,
        changed: Changed = lambda _: None,
        start_timeout: float = 900.0,
    ) -> None:
        self._components = {component.name: component for component in components}
        self._folder = folder
        self._record = record
        self._changed = changed
        self._start_timeout = start_timeout
        self._running: dict[str, Child] = {}
        self._log_starts: dict[str, int] = {}
        self._ready = {name: asyncio.Event() for name in self._components}
        self._stop = asyncio.Event()
        self._noted = 0.0

    async def run(self) -> StackState:
        """Start everything and stay until told to stop (`stop`, SIGINT, SIGTERM, SIGHUP) or a start fails."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)
        self._write()
        async with Children() as children:
            try:
                await self._tend_all(children)
            finally:
                await self._stop_all()
        self._set_state(StackState.failed if self._record.error else StackState.stopped)
        return self._record.state

    def stop(self) -> None:
        """Ask for the end; a second time: kill what has not ended yet."""
        if self._stop.is_set():
            for child in self._running.values():
                child.kill()
        self._stop.set()

    async def _tend_all(self, children: Children) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for component in self._components.values():
                    group.create_task(self._tend(component, children))
                group.create_task(self._all_ready())
                group.create_task(self._until_stopped())
        except* _Stop:
            pass
        except* StartFailed as failures:
            first = failures.exceptions[0]
            self._record.error = str(first)
            self._record.error_log = first.log if isinstance(first, StartFailed) else []

    async def _until_stopped(self) -> None:
        await self._stop.wait()
        raise _Stop

    async def _all_ready(self) -> None:
        try:
            async with asyncio.timeout(self._start_timeout):
                for ready in self._ready.values():
                    await ready.wait()
        except TimeoutError:
            late = next(name for name, ready in self._ready.items() if not ready.is_set())
            note = self._record.components[late].note
            reason = f"was not ready within {self._start_timeout:g} s{f' ({note})' if note else ''}"
            raise self._failure(late, reason) from None
        self._set_state(StackState.ready)

    async def _tend(self, component: Component, children: Children) -> None:
        """Start it when what it needs is ready, and again whenever it ends."""
        for name in component.needs:
            await self._ready[name].wait()
        pauses = Pauses(FIRST_PAUSE)
        while True:
            started = time.monotonic()
            ended = await self._run_once(component, children)
            if component.once:
                return
            pause = pauses.after(time.monotonic() - started)
            self._mark_ended(component, ended, pause)
            await asyncio.sleep(pause)

    async def _run_once(self, component: Component, children: Children) -> str:
        """Start it and stay until it ends. Returns how; raises `StartFailed` unless it has been ready before."""
        try:
            child = await self._start(component, children)
        except OSError as error:
            return self._ended(component, f"could not be started: {error}")
        if component.once:
            return self._finish(component, await self._until_done(component, child))
        status = await self._until_ready(component, child)
        if status is not None:
            return self._ended(component, ending(status), " before it was ready")
        self._mark_ready(component)
        return ending(await child.ended())

    def _ended(self, component: Component, how: str, when: str = "") -> str:
        if not self._ready[component.name].is_set():
            raise self._failure(component.name, how + when)
        return how

    async def _start(self, component: Component, children: Children) -> Child:
        if component.beat is not None:
            component.beat.unlink(missing_ok=True)
        log = self._folder.log(component.name)
        set_aside(log)
        with log.open("ab") as output:
            self._log_starts[component.name] = output.tell()
            child = await children.spawn(
                component.argv,
                env={**os.environ, **component.env},
                cwd=component.cwd or self._folder.root,
                output=output,
                death_signal=component.death_signal,
            )
        self._running[component.name] = child
        record = self._record.components[component.name]
        record.pid, record.started = child.pid, time.time()
        self._set(component, ComponentState.starting)
        return child

    async def _until_done(self, component: Component, child: Child) -> int:
        """The status that a task ended with."""
        while not child.exit.done():
            await asyncio.wait([child.exit], timeout=NOTE_PAUSE)
            self._note(component, "".join(self._written(component.name, 1)))
        return child.exit.result()

    async def _until_ready(self, component: Component, child: Child) -> int | None:
        """None once it is ready, else the status that it ended with before."""
        while not child.exit.done():
            reason = await component.ready() if component.ready else None
            if child.exit.done():
                break
            if reason is None:
                return None
            self._note(component, reason)
            await asyncio.wait([child.exit], timeout=PROBE_PAUSE)
        return child.exit.result()

    def _written(self, name: str, lines: int) -> list[str]:
        """The last lines that this run of a program has written."""
        return tail(self._folder.log(name), lines, start=self._log_starts[name])

    def _finish(self, component: Component, status: int) -> str:
        if status != 0:
            raise self._failure(component.name, f"{ending(status)} before it was done")
        self._running.pop(component.name)
        self._record.components[component.name].pid = None
        self._mark_ready(component, ComponentState.done)
        return ending(status)

    def _mark_ready(self, component: Component, state: ComponentState = ComponentState.ready) -> None:
        record = self._record.components[component.name]
        record.took = record.took or time.time() - (record.started or 0.0)
        self._set(component, state)
        self._ready[component.name].set()

    def _mark_ended(self, component: Component, how: str, pause: float) -> None:
        self._running.pop(component.name, None)
        record = self._record.components[component.name]
        record.pid, record.restarts = None, record.restarts + 1
        self._set(component, ComponentState.restarting, f"{how}; again in {pause:g} s")

    async def _stop_all(self) -> None:
        """What nothing else needs ends first."""
        if self._record.error is None:
            self._set_state(StackState.stopping)
        stopped = {name: asyncio.Event() for name in self._components}

        async def stop_one(component: Component) -> None:
            for other in self._components.values():
                if component.name in other.needs:
                    await stopped[other.name].wait()
            child = self._running.get(component.name)
            if child is not None:
                await child.stop(component.stop_signal, component.stop_grace)
                del self._running[component.name]
                self._record.components[component.name].pid = None
                if self._record.components[component.name].state is not ComponentState.failed:
                    self._set(component, ComponentState.stopped)
            stopped[component.name].set()

        async with asyncio.TaskGroup() as group:
            for component in self._components.values():
                group.create_task(stop_one(component))

    def _failure(self, name: str, reason: str) -> StartFailed:
        record = self._record.components[name]
        record.state, record.note = ComponentState.failed, reason
        return StartFailed(name, reason, self._written(name, LAST_WORDS) if name in self._running else [])

    def _set(self, component: Component, state: ComponentState, note: str = "") -> None:
        record = self._record.components[component.name]
        record.state, record.note = state, note
        self._write()

    def _note(self, component: Component, note: str) -> None:
        record = self._record.components[component.name]
        if note != record.note and time.monotonic() - self._noted > NOTE_PAUSE:
            self._noted = time.monotonic()
            self._set(component, record.state, note)

    def _set_state(self, state: StackState) -> None:
        self._record.state = state
        self._write()

    def _write(self) -> None:
        self._folder.write(self._record)
        self._changed(self._record)
