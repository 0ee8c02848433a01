"""LoRA adapters in a vLLM server.

vLLM keeps a number of adapters in memory (`--max-cpu-loras`) and reads one that fell out from its folder again, in the
middle of a batch: a folder that was changed by then is another policy, and one that is gone kills the server. So none
may fall out: no more are loaded than it keeps, and one that is unloaded is taken out of its memory too, which vLLM
itself does not do. Both need dev mode; without it folders must stay as they are.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

from rlt_client.errors import APIError, InvalidRequest, Unavailable
from rlt_teacher_server.engine import wire
from rlt_teacher_server.engine.base import Adapter
from rlt_teacher_server.engine.vllm.fitting import fit_adapter, unusable
from rlt_teacher_server.engine.vllm.server import Reply, Server

__all__ = ["FAULT", "Adapters", "failed", "said_of"]

LOAD_S: Final = 300.0  # one adapter from a slow disk, while the server is busy
FLAGS: Final = "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
FAULT: Final = "method failed:"  # after `Call to add_lora `: the engine goes on
NOT_THERE: Final = "No adapter found"
PATH: Final = re.compile(r"<path>|(?<![\w.>])(?:/[\w.+@-]+)+")
"""vLLM hides most paths, but not all."""


class Adapters:
    """Args:
    base: folder of the model that they are made for, if it is known.
    """

    def __init__(self, server: Server, base: Path | None) -> None:
        self._server = server
        self._base = base
        self._one = asyncio.Lock()
        self._numbers: dict[str, int] = {}
        """What vLLM calls those that were loaded here."""
        self.info: wire.Info | None = None
        """Of a server in dev mode."""

    async def names(self) -> frozenset[str]:
        reply = await self._server.call("GET", "/v1/models")
        return frozenset(model.id for model in reply.read(wire.Models).data if model.parent is not None)

    async def add(self, adapter: Adapter) -> None:
        async with self._one:
            names = await self.names()
            if adapter.name in names:
                return
            self._make_sure_of_room(len(names))
            if self._base is not None:
                await asyncio.to_thread(fit_adapter, self._base, adapter.folder)
            before = await self._loaded()
            await self._load(adapter)
            if new := await self._loaded() - before:
                self._numbers[adapter.name] = max(new)

    async def remove(self, name: str) -> None:
        async with self._one:
            reply = await self._server.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
            if not reply.ok and reply.status != 404:
                raise failed(reply)
            number = self._numbers.pop(name, None)
            if number is not None and self.info is not None:
                forgetting = {"method": "remove_lora", "args": [number]}
                reply = await self._server.call("POST", "/collective_rpc", forgetting)
                if not reply.ok:
                    raise failed(reply)

    async def clear(self) -> None:
        """Unload what was loaded here."""
        for name in list(self._numbers):
            await self.remove(name)

    def forget(self) -> None:
        """It was started anew."""
        self._numbers.clear()

    def _make_sure_of_room(self, loaded: int) -> None:
        if self.info is None:
            return
        config = self.info.vllm_config.lora_config
        if config is None:
            raise InvalidRequest(f"this engine takes no adapters: {FLAGS}", type="adapters_unavailable")
        if loaded >= config.max_cpu_loras:
            detail = f"vLLM keeps {config.max_cpu_loras} adapters: unload one, or start it with --max-cpu-loras"
            raise InvalidRequest(detail, type="adapters_unavailable")

    async def _loaded(self) -> set[int]:
        """Numbers of those in its memory."""
        if self.info is None:
            return set()
        reply = await self._server.call("POST", "/collective_rpc", {"method": "list_loras"}, limit=LOAD_S)
        return set(reply.read(wire.Loras).results[0])

    async def _load(self, adapter: Adapter) -> None:
        body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
        reply = await self._server.call("POST", "/v1/load_lora_adapter", body, limit=LOAD_S)
        if not reply.ok:
            raise _refused(reply, adapter.folder)


def failed(reply: Reply) -> Unavailable:
    return Unavailable(f"the engine answered {reply.status}: {reply.message}", type="engine_down", retry_after=1.0)


def said_of(folder: Path, message: str) -> str:
    """What vLLM says of a folder, without the paths of its machine."""
    words = message.partition(FAULT)[2].strip() or message
    own = words.replace(str(folder), folder.name)
    return f"{folder.name}: {PATH.sub(lambda found: _last(found[0], folder), own)}"


def _last(path: str, folder: Path) -> str:
    return folder.name if path == "<path>" else Path(path).name


def _refused(reply: Reply, folder: Path) -> APIError:
    message = reply.message
    if NOT_THERE in message:
        return unusable(f"{folder.name}: vLLM does not find it: its machine must have it under the same path")
    if reply.status == 404 or "LoRA is not enabled" in message:
        return InvalidRequest(f"this engine takes no adapters: {FLAGS}", type="adapters_unavailable")
    if reply.status == 400 or FAULT in message:
        return unusable(said_of(folder, message))
    return failed(reply)
