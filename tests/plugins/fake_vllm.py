"""A vLLM server without a model, in the place of the network.

It keeps the shape of vLLM's replies, events and refusals, its two ways to report log-probs, which adapters and weights
it was given and what becomes of its cache; it keeps no property of sampling. What a real vLLM does is in
tests/contract.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from rlt_client import vllm_worker
from rlt_teacher_server.engine.base import SampleRequest
from rlt_teacher_server.engine.vllm import VLLMEngine

__all__ = ["DONE", "FakeVLLM", "asked", "event", "events", "reply"]

LOGITS = {"token_id:5": 3.0, "token_id:6": 1.0, "token_id:7": 0.0}
NOT_FOUND = {"error": {"message": "Not Found", "type": "NotFoundError", "param": None, "code": 404}}

DONE = b"data: [DONE]\n\n"

Answer = Callable[[dict[str, Any]], httpx.Response | None]


class FakeVLLM:
    """Args:
    raw: whether it reports the model's own log-probs.
    answer: replies to a sample, where it gives one.
    dev, lora: whether it was started with dev mode and for adapters.
    born: when it was started; None: as of several processes.
    device, extension: what it computes on, and the extension of its workers.
    """

    def __init__(
        self,
        *,
        raw=False,
        models=None,
        answer=None,
        model_len=256,
        dev=True,
        lora=True,
        born=1000.5,
        device="cuda",
        extension="",
    ):
        self.raw, self.dev, self.lora, self.born = raw, dev, lora, born
        self.device, self.extension = device, extension
        self.models = models or [{"id": "tiny", "max_model_len": model_len}]
        self.answer: Answer = answer or (lambda body: None)
        self.room = 3
        self.adapters: dict[str, int] = {}
        self.in_memory: list[int] = []
        self.weights, self.version, self.cached = "first", "default", ""
        self.packed = "first"
        """Whose output layer it computes with."""
        self.refuses: dict[str, httpx.Response] = {}
        """Replies by path, in the place of its own."""
        self.resets = [True]
        """What resets of the cache say; the last one is repeated."""
        self.running, self.waiting, self.steps = 0, 0, 0
        self.asked: list[dict[str, Any]] = []
        self.calls: list[tuple[str, Any]] = []
        self.connections = 0

    def engine(self, **given: Any) -> VLLMEngine:
        return VLLMEngine("http://vllm", **({"probe": [1, 2], "transport": httpx.MockTransport(self.handle)} | given))

    def restart(self) -> None:
        self.__init__(
            dev=self.dev, lora=self.lora, born=(self.born or 0) + 60, device=self.device, extension=self.extension
        )

    def told(self, path: str) -> list[Any]:
        return [body for called, body in self.calls if called == path]

    async def handle(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        path = request.url.path
        body = json.loads(request.content) if request.content else None
        self.calls.append((path, body))
        if path in self.refuses:
            return self.refuses[path]
        route = self.routes.get(path)
        return route(self, body) if route else httpx.Response(404, json=NOT_FOUND)

    @property
    def routes(self) -> dict[str, Callable[..., httpx.Response]]:
        cls = type(self)
        always = {
            "/v1/models": cls._models,
            "/health": lambda *_: httpx.Response(200),
            "/version": lambda *_: httpx.Response(200, json={"version": "0.31.0"}),
            "/metrics": cls._metrics,
            "/v1/completions": cls._completion,
        }
        loras = {"/v1/load_lora_adapter": cls._load, "/v1/unload_lora_adapter": cls._unload}
        dev = {
            "/server_info": cls._info,
            "/weight_info": lambda self, _: httpx.Response(200, json={"weight_version": self.version}),
            "/update_weight_version": cls._name,
            "/collective_rpc": cls._rpc,
            "/reset_prefix_cache": cls._reset,
        }
        return always | (loras if self.lora else {}) | (dev if self.dev else {})

    def _models(self, _):
        self.connections += 1
        adapters = [{"id": name, "parent": "tiny", "max_model_len": None} for name in self.adapters]
        return httpx.Response(200, json={"object": "list", "data": self.models + adapters})

    def _metrics(self, _):
        labels = '{engine="0",model_name="tiny"}'
        lines = [
            "# HELP vllm:num_requests_running Number of requests in model execution batches.",
            f"vllm:num_requests_running{labels} {self.running}.0",
            f"vllm:num_requests_waiting{labels} {self.waiting}.0",
            'vllm:num_requests_waiting_by_reason{reason="capacity"} 77.0',
            f"vllm:iteration_tokens_total_count{labels} {self.steps}.0",
            *([f"process_start_time_seconds {self.born}"] if self.born is not None else []),
        ]
        return httpx.Response(200, text="\n".join([*lines, ""]))

    def _info(self, _):
        loras = {"max_cpu_loras": self.room} if self.lora else None
        config = {
            "lora_config": loras,
            "model_config": {"dtype": "torch.float32"},
            "device_config": {"device": self.device},
            "parallel_config": {"worker_extension_cls": self.extension},
        }
        return httpx.Response(200, json={"vllm_config": config})

    def _name(self, body):
        self.version = body["new_version"]
        return httpx.Response(200, json={"success": True})

    def _rpc(self, body):
        if body["method"] == "list_loras":
            return httpx.Response(200, json={"results": [self.in_memory]})
        if body["method"] == "remove_lora":
            self.in_memory.remove(body["args"][0])
        if body["method"] == "reload_weights":
            self.weights = Path(body["kwargs"]["weights_path"]).name
            self.packed = self.packed if self.device == "cpu" else self.weights
        if body["method"] == vllm_worker.PACK:
            if self.extension != vllm_worker.EXTENSION:
                return _refused(500, f"Method '{vllm_worker.PACK}' is not implemented.")
            self.packed = self.weights
        return httpx.Response(200, json={"results": [None]})

    def _reset(self, _):
        success = self.resets.pop(0) if len(self.resets) > 1 else self.resets[0]
        if success:
            self.cached = ""
        return httpx.Response(200, json={"success": success})

    def _load(self, body):
        if body["lora_name"] in self.adapters:
            return _refused(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        self.adapters[body["lora_name"]] = number = max(self.in_memory, default=0) + 1
        self.in_memory.append(number)
        return httpx.Response(200, text="Success")

    def _unload(self, body):
        if self.adapters.pop(body["lora_name"], None) is None:
            return _refused(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return httpx.Response(200, text="Success")

    def _completion(self, body):
        probing = body["logprobs"] > 0
        if not probing:
            self.asked.append(body)
            if given := self.answer(body):
                return given
        return reply(body, self.choice(body))

    def choice(self, body: dict[str, Any]) -> dict[str, Any]:
        """Token 5, of the weights that computed what the cache has of its prompt."""
        used = self.weights
        if "cache_salt" not in body:
            used = self.cached = self.cached or self.weights
        temperature = 1.0 if self.raw or body["temperature"] == 0 else body["temperature"]
        scaled = {token: value * (1 + sum(map(ord, used)) % 10 / 100) / temperature for token, value in LOGITS.items()}
        total = math.log(sum(map(math.exp, scaled.values())))
        logprobs = {token: value - total for token, value in scaled.items()}
        return {
            "token_ids": [5],
            "logprobs": {"token_logprobs": [logprobs["token_id:5"]], "top_logprobs": [logprobs]},
            "finish_reason": "stop",
        }


def asked(**given: Any) -> SampleRequest:
    return SampleRequest(**({"prompt_token_ids": [1, 2], "max_tokens": 4, "seed": 3, "temperature": 0.7} | given))


def reply(body: dict[str, Any], choice: dict[str, Any]) -> httpx.Response:
    """As one document, or as events where it is asked for."""
    if body["stream"]:
        return events(event(choice), DONE)
    return httpx.Response(200, json={"choices": [choice]})


def events(*pieces: bytes) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=_one_by_one(pieces))


def event(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "cmpl-1", "choices": [choice]}).encode() + b"\n\n"


def _refused(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "code": status}})


async def _one_by_one(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece
