"""`python -m rlt_reward_server.parallel.follower`: a rank that the server starts; not for people."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from rlt_reward_server.engine.scorer import CausalScorer
from rlt_reward_server.parallel.channel import Channel, TCPStore, join
from rlt_reward_server.parallel.sharding import prove_together, read_shard

log = logging.getLogger(__name__)


class Follower:
    """Does what the leader does, in the same order."""

    def __init__(self, rank: int, size: int, port: int, device: str) -> None:
        store = TCPStore("127.0.0.1", port, size, is_master=False)
        self._passes, self._loads = join(rank, size, store, device)
        self._device = torch.device("cuda", rank) if device == "cuda" else torch.device("cpu")
        self._parts: SimpleQueue[tuple[int, nn.Module]] = SimpleQueue()
        self._scorers: dict[int, CausalScorer] = {}

    def follow(self) -> None:
        """Until the leader is gone."""
        threading.Thread(target=self._each, args=(self._loads, self._read), daemon=True).start()
        self._each(self._passes, self._pass)

    def _each(self, channel: Channel, do: Any) -> None:
        while True:
            message = channel.receive()
            try:
                do(*message)
            except Exception:  # it failed in the leader too, which tells whoever asked
                log.exception("a command failed", extra={"command": message[0]})

    def _read(self, _: str, key: int, folder: str, dtype: str, pickles: bool) -> None:
        part = read_shard(Path(folder), dtype, self._device, pickles=pickles, channel=self._loads)
        self._parts.put((key, part))

    def _part(self, key: int) -> nn.Module:
        """What the other thread read, which may not have come here yet when the leader knows that all ranks have it."""
        while (found := self._parts.get())[0] != key:
            pass
        return found[1]

    def _pass(self, command: str, key: int, *rest: Any) -> None:
        if command == "prove":
            [max_batch_tokens] = rest
            self._scorers[key] = prove_together(self._part(key), max_batch_tokens, self._passes)
            return
        batch, dropped = rest
        for each in dropped:
            self._scorers.pop(each, None)
        try:
            with torch.inference_mode():
                self._scorers[key]._body.hidden(batch)
        except Exception:
            self._give_up()
            raise

    def _give_up(self) -> None:
        try:
            self._passes.give_up()
        except RuntimeError:
            log.exception("a pass failed in this rank alone")
            os._exit(1)  # the leader sees it, and scores nothing more


def _end_with_the_leader() -> NoReturn:
    """Its end of the pipe closes when it ends, however it ends."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    options = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the leader ends this process once it has nothing more to do
    logging.basicConfig(level=logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in transformers
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    Follower(options["rank"], options["size"], options["port"], options["device"]).follow()


if __name__ == "__main__":
    main()
