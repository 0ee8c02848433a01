"""vLLM itself (0.31 or later), on a private address: its OpenAI API, and its development endpoints for full weights.

What is proved of the weights that sampled: an adapter is asked for by a name that holds its content hash, which vLLM
refuses unless it has loaded a folder under it; full weights get a name in the engine once they are in place, of their
hash and a mark of this time, and it must say the same name before and after each completion: an engine that was
started anew has its first weights and no name for them.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from rlt_client import vllm_worker
from rlt_client._waiting import CONNECT_S, Absence, Patience
from rlt_client.errors import APIError, InvalidRequest, Unavailable
from rlt_trainer.config.rl import Rollout
from rlt_trainer.revision import folder_revision
from rlt_trainer.rl.engines.base import Ask, Completion, Failed, Published

__all__ = ["VLLMEngine"]

NEUTRAL: Final[dict[str, Any]] = {
    "n": 1,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "ignore_eos": False,
    "logprobs": 0,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,  # two tokens may spell the same text, and would be one entry
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "add_special_tokens": False,
    "echo": False,
    "stream": False,
}
"""Said in every request, so that no default of the server's or the model's takes part."""

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0  # an engine that was started anew is found again within this time
PASSING: Final = frozenset({429, 500, 502, 503, 504})  # 500: it dies, and somebody starts it anew
SETTINGS: Final = "/server_info?config_format=json"
REFUSING: Final = frozenset({"/v1/load_lora_adapter", "/collective_rpc", SETTINGS})
"""Where 500 is a refusal too: a vLLM that goes on has no other status for weights that it cannot take, nor for want of
pip, which it lists its packages with where it tells its settings."""
UNFINISHED: Final = "unfinished"  # the engine's name for weights that are being replaced
MARK: Final = "#"  # between a hash and what tells one time that it was put in place from another
RESETS: Final = 50  # of its cache: one is refused as long as a request that was broken off holds blocks
RESET_PAUSE_S: Final = 0.1
PROBE_TOKENS: Final = 600  # more than two blocks of its cache, whose blocks have 16 tokens on a GPU and 128 on a CPU
SAME_NATS: Final = 0.05  # between log-probs of the same weights in bfloat16, at most
FLAGS: Final = (
    "start vLLM with VLLM_SERVER_DEV_MODE=1 for full weights, "
    "with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 for adapters"
)
RANK: Final = "max_lora_rank"  # vLLM names it where an adapter's rank is above it
RANK_FLAG: Final = "start vLLM with a --max-lora-rank of at least the adapter's rank"


@dataclass(frozen=True, slots=True)
class _Model:
    """What the engine was started with. `max_tokens` of prompt and completion."""

    name: str
    max_tokens: int


class VLLMEngine:
    """Args:
    stop: strings that end a completion; kept in it.
    stop_ids: tokens that do.
    """

    def __init__(self, config: Rollout, *, key: str | None, stop: Sequence[str], stop_ids: Sequence[int]) -> None:
        self._config = config
        self._sampling = NEUTRAL | {
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "stop": list(stop),
            "stop_token_ids": list(stop_ids),
        }
        self._http = httpx.AsyncClient(
            base_url=config.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(config.deadline_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=config.concurrency + 1),  # one to publish
        )
        self._absence = Absence(config.url)
        self._under_way = asyncio.Semaphore(config.concurrency)
        self._mending = asyncio.Lock()
        self._model: _Model | None = None
        self._packs: bool | None = None

    async def generate(self, asks: Sequence[Ask], weights: Published) -> list[Completion | Failed]:
        """One request a sample: a list of equal prompts with one seed gives equal samples."""
        return list(await asyncio.gather(*(self._sample(ask, weights) for ask in asks)))

    async def publish(self, folder: Path, *, lora: bool) -> Published:
        revision = await asyncio.to_thread(folder_revision, folder)
        if revision is None:
            raise InvalidRequest(f"{folder} has no weights", type="unusable_policy")
        weights = Published(folder, lora, revision)
        await self._publish(weights)
        return weights

    async def aclose(self) -> None:
        await self._http.aclose()

    # Samples

    async def _sample(self, ask: Ask, weights: Published) -> Completion | Failed:
        async with self._under_way:
            until = time.monotonic() + self._config.deadline_s
            while True:
                reply = await (self._by_adapter if weights.lora else self._by_model)(ask, weights)
                if reply is None:
                    await self._publish(weights)
                elif (made := _read(reply, weights.revision)) is not None:
                    return made
                if time.monotonic() > until:
                    raise _loses_them()

    async def _by_adapter(self, ask: Ask, weights: Published) -> httpx.Response | None:
        """None: the engine does not have these weights, here and below."""
        reply = await self._complete(self._adapter(weights), ask)
        return None if reply.status_code == 404 else reply

    async def _by_model(self, ask: Ask, weights: Published) -> httpx.Response | None:
        before = await self._named()
        if not _is(before, weights):
            return None
        reply = await self._complete((await self._base()).name, ask)
        return reply if await self._named() == before else None

    async def _complete(self, model: str, ask: Ask) -> httpx.Response:
        asked = {"model": model, "prompt": list(ask.prompt_ids), "seed": ask.seed}
        return await self._call("POST", "/v1/completions", self._sampling | asked)

    async def _base(self) -> _Model:
        if self._model is None:
            found = next(model for model in await self._served() if model.get("parent") is None)
            self._model = _Model(str(found["id"]), int(found["max_model_len"]))
        return self._model

    async def _served(self) -> list[dict[str, Any]]:
        return list(_body(await self._call("GET", "/v1/models"))["data"])

    # Weights

    async def _publish(self, weights: Published) -> None:
        async with self._mending:
            await (self._load_adapter(weights) if weights.lora else self._replace(weights))

    def _adapter(self, weights: Published) -> str:
        return f"{self._config.policy}-{weights.revision.removeprefix('sha256:')}"

    async def _load_adapter(self, weights: Published) -> None:
        """A reply may be lost, and a server started anew: a call that was made twice, or to another server, is refused
        although all is well. What it has loaded tells that; a name that holds the hash has no other content.
        """
        wanted = self._adapter(weights)
        loaded = await self._adapters()
        if wanted not in loaded:
            body = {"lora_name": wanted, "lora_path": str(weights.folder)}
            reply = await self._call("POST", "/v1/load_lora_adapter", body)
            if not reply.is_success and wanted not in await self._adapters():
                raise _refusal(reply)
        for old in sorted(loaded - {wanted}):
            if old.startswith(f"{self._config.policy}-"):
                reply = await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": old})
                if not reply.is_success and old in await self._adapters():
                    raise _refusal(reply)

    async def _adapters(self) -> set[str]:
        return {str(model["id"]) for model in await self._served() if model.get("parent") is not None}

    async def _replace(self, weights: Published) -> None:
        """From the beginning where it is started anew meanwhile: it then has its first weights."""
        until = time.monotonic() + self._config.patience_s
        while not _is(await self._named(), weights):
            if time.monotonic() > until:
                raise _loses_them()
            await self._put_in_place(weights)

    async def _put_in_place(self, weights: Published) -> None:
        """Nothing has the name of these weights at the end unless the server that began has them."""
        packs = await self._packs_its_weights()
        unfinished, finished = f"{UNFINISHED}{_mark()}", f"{weights.revision}{_mark()}"
        await self._likeliest()  # now its cache has something that must go
        await self._name(unfinished)
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(weights.folder)}}
        _must(await self._call("POST", "/collective_rpc", reload))
        if packs:
            _must(await self._call("POST", "/collective_rpc", {"method": vllm_worker.PACK}))
        await self._empty_cache()
        fresh, cached = await self._likeliest(salt=secrets.token_hex(16)), await self._likeliest()
        if not abs(fresh - cached) <= SAME_NATS:  # NaN too
            raise Unavailable("the engine's cache still has what the old weights computed", type="engine_down")
        if await self._named() == unfinished:
            with suppress(Unavailable):
                await self._name(finished, patience_s=0)  # not asked again: another server may answer then

    async def _packs_its_weights(self) -> bool:
        """As `rlt_client.vllm_worker.packs`. Raises `InvalidRequest` where it does, and where this is not told."""
        if self._packs is None:
            reply = await self._call("GET", SETTINGS)
            if not reply.is_success:
                detail = f"the engine does not tell its settings: {reply.status_code} {_message(reply)}"
                raise InvalidRequest(detail, type="weights_unavailable")
            told = reply.json()["vllm_config"]
            extension = told["parallel_config"]["worker_extension_cls"]
            self._packs = vllm_worker.packs(told["device_config"]["device"], extension)
        return self._packs

    async def _named(self) -> str:
        return str(_body(await self._call("GET", "/weight_info"))["weight_version"])

    async def _name(self, version: str, **patience: float) -> None:
        _must(await self._call("POST", "/update_weight_version", {"new_version": version}, **patience))

    async def _empty_cache(self) -> None:
        for _ in range(RESETS):
            if _body(await self._call("POST", "/reset_prefix_cache?reset_external=true"))["success"]:
                return
            await asyncio.sleep(RESET_PAUSE_S)
        raise Unavailable("the engine's cache could not be emptied: requests still run", type="engine_down")

    async def _likeliest(self, salt: str | None = None) -> float:
        """Log-prob of the likeliest token after a long prompt, through the cache; past it with a salt."""
        model = await self._base()
        asked = {"model": model.name, "prompt": [1] * min(PROBE_TOKENS, model.max_tokens - 1)}
        body = NEUTRAL | asked | {"max_tokens": 1, "temperature": 0.0, "seed": 0}
        reply = await self._call("POST", "/v1/completions", body | ({"cache_salt": salt} if salt else {}))
        return float(_body(reply)["choices"][0]["logprobs"]["token_logprobs"][0])

    # HTTP

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, patience_s: float | None = None
    ) -> httpx.Response:
        """Asked again until patience is over, as long as nobody answers, or with what passes.

        Raises:
            Unavailable
        """
        patience, pause = Patience(self._config.patience_s if patience_s is None else patience_s), FIRST_PAUSE_S
        while True:
            patience.asks()
            try:
                reply = await self._http.request(method, path, json=body)
                if reply.status_code not in PASSING or await self._refuses(path, reply):
                    self._absence.over()
                    return reply
                failure: Exception = _refusal(reply)
                reason = f"{reply.status_code} {_message(reply)}"
            except httpx.TransportError as error:
                failure, reason = error, str(error) or type(error).__name__
            if patience.begins_anew(failure):
                pause = FIRST_PAUSE_S
            if not patience.lasts(pause):
                raise Unavailable(f"{method} {self._config.url}{path}: {reason}", type="engine_down")
            self._absence.goes_on(reason)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _refuses(self, path: str, reply: httpx.Response) -> bool:
        """Asked once and at once: a server that died is not back yet."""
        if path not in REFUSING or reply.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
            return False
        with suppress(Unavailable):
            return (await self._call("GET", "/health", patience_s=0)).is_success
        return False


def _mark() -> str:
    return f"{MARK}{secrets.token_hex(8)}"


def _loses_them() -> Unavailable:
    return Unavailable("the engine loses its weights again and again", type="engine_down")


def _is(named: str, weights: Published) -> bool:
    return named.partition(MARK)[0] == weights.revision


def _read(reply: httpx.Response, revision: str) -> Completion | Failed | None:
    """None for one that the engine broke off, as it does with all of them when it is stopped."""
    if not reply.is_success:
        return Failed("engine_refused", _message(reply))
    [choice] = _body(reply)["choices"]
    if choice["finish_reason"] == "abort":
        return None
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if len(ids) != len(logprobs) or not all(each is not None and math.isfinite(each) for each in logprobs):
        return Failed("non_finite_logits", "a token has no log-prob")
    return Completion(ids, logprobs, choice["finish_reason"], revision)


def _body(reply: httpx.Response) -> Any:
    _must(reply)
    return reply.json()


def _must(reply: httpx.Response) -> None:
    if reply.is_success:
        return
    raise _refusal(reply)


def _refusal(reply: httpx.Response) -> APIError:
    message = _message(reply)
    hint = f"; {FLAGS}" if reply.status_code == 404 else f"; {RANK_FLAG}" if RANK in message else ""
    return InvalidRequest(f"the engine answered {reply.status_code}: {message}{hint}", type="unusable_policy")


def _message(reply: httpx.Response) -> str:
    """What a refusal says, for people."""
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return reply.text[:200]
