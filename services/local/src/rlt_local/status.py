"""What a stack's record says, held against what is true now."""

from __future__ import annotations

import asyncio

from rlt_local.state import ComponentRecord, ComponentState, StackRecord, StackState, StateFolder
from rlt_local.stop import is_alive
from rlt_service.probe import http_ready

__all__ = ["current"]

WELL = (ComponentState.ready, ComponentState.done)


def current(folder: StateFolder) -> tuple[StackRecord | None, bool]:
    """The record of the running stack, each server asked again whether it is ready; and whether all is well.

    None where no stack runs.
    """
    record = folder.read()
    if record is None or not is_alive(record):
        return None, False
    asyncio.run(_ask(record))
    well = all(component.state in WELL and not component.note for component in record.components.values())
    return record, well and record.state is StackState.ready


async def _ask(record: StackRecord) -> None:
    servers = [each for each in record.components.values() if each.url and each.state is ComponentState.ready]
    await asyncio.gather(*(_ask_one(each) for each in servers))


async def _ask_one(component: ComponentRecord) -> None:
    component.note = await http_ready(f"{component.url}/readyz")() or ""
