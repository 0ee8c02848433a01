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
from rlt_local.process import Children, Process
from rlt_local.state import ComponentState, StackRecord, StackState, StateFolder

PROBE_PAUSE = 0.1
NOTE_PAUSE = 0.5  # a starting program's note is written at most this often
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # before a program that ended is started again
STEADY = 60.0  # one that was ready this long starts with the first pause again

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
        self._running: dict[str, Process] = {}
        self._ready = {name: asyncio.Event() for name in self._components}
        self._stop = asyncio.Event()
        self._noted = 0.0

    async def run(self) -> StackState:
        """Start everything and stay until told to stop (`stop`, SIGINT, SIGTERM, SIGHUP) or a start fails."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)
        self._write()
        with Children() as children:
            try:
                await self._tend_all(children)
            finally:
                await self._stop_all()
        self._set_state(StackState.failed if self._record.error else StackState.stopped)
        return self._record.state

    def stop(self) -> None:
        """Ask for the end; a second time: kill what has not ended yet."""
        if self._stop.is_set():
            for process in self._running.values():
                process.kill()
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
        pause = FIRST_PAUSE
        while True:
            started = time.monotonic()
            ending = await self._run_once(component, children)
            if component.once:
                return
            if time.monotonic() - started > STEADY:
                pause = FIRST_PAUSE
            self._mark_ended(component, ending, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _run_once(self, component: Component, children: Children) -> str:
        """Start it and stay until it ends. Returns how; raises `StartFailed` unless it has been ready before."""
        try:
            process = self._start(component, children)
        except OSError as error:
            return self._ended(component, f"could not be started: {error}")
        status = await self._until_ready(component, process)
        if component.once:
            return self._finish(component, status)
        if status is not None:
            return self._ended(component, _ending(status), " before it was ready")
        self._mark_ready(component)
        return _ending(await process.ended())

    def _ended(self, component: Component, ending: str, when: str = "") -> str:
        if not self._ready[component.name].is_set():
            raise self._failure(component.name, ending + when)
        return ending

    def _start(self, component: Component, children: Children) -> Process:
        if component.beat is not None:
            component.beat.unlink(missing_ok=True)
        process = children.spawn(
            component.argv,
            env={**os.environ, **component.env},
            cwd=component.cwd or self._folder.root,
            log=self._folder.log(component.name),
            death_signal=component.death_signal,
        )
        self._running[component.name] = process
        record = self._record.components[component.name]
        record.pid, record.started = process.pid, time.time()
        self._set(component, ComponentState.starting)
        return process

    async def _until_ready(self, component: Component, process: Process) -> int | None:
        """None once it is ready, else the status that it ended with before."""
        if component.once:
            while not process.exit.done():
                await asyncio.wait([process.exit], timeout=NOTE_PAUSE)
                self._note(component, "".join(process.tail(1)))
            return process.exit.result()
        while not process.exit.done():
            reason = await component.ready() if component.ready else None
            if process.exit.done():
                break
            if reason is None:
                return None
            self._note(component, reason)
            await asyncio.wait([process.exit], timeout=PROBE_PAUSE)
        return process.exit.result()

    def _finish(self, component: Component, status: int | None) -> str:
        if status != 0:
            raise self._failure(component.name, f"{_ending(status)} before it was done")
        self._running.pop(component.name)
        self._record.components[component.name].pid = None
        self._mark_ready(component, ComponentState.done)
        return _ending(status)

    def _mark_ready(self, component: Component, state: ComponentState = ComponentState.ready) -> None:
        record = self._record.components[component.name]
        record.took = record.took or time.time() - (record.started or 0.0)
        self._set(component, state)
        self._ready[component.name].set()

    def _mark_ended(self, component: Component, ending: str, pause: float) -> None:
        self._running.pop(component.name, None)
        record = self._record.components[component.name]
        record.pid, record.restarts = None, record.restarts + 1
        self._set(component, ComponentState.restarting, f"{ending}; again in {pause:g} s")

    async def _stop_all(self) -> None:
        """What nothing else needs ends first."""
        if self._record.error is None:
            self._set_state(StackState.stopping)
        stopped = {name: asyncio.Event() for name in self._components}

        async def stop_one(component: Component) -> None:
            for other in self._components.values():
                if component.name in other.needs:
                    await stopped[other.name].wait()
            process = self._running.get(component.name)
            if process is not None:
                await process.stop(component.stop_signal, component.stop_grace)
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
        process = self._running.get(name)
        return StartFailed(name, reason, process.tail() if process else [])

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


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
