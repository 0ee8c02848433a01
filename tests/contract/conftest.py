"""Both engines behind one fixture. What the suite asserts must hold for either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from rlt_client.formats import Format, shipped_formats
from rlt_client.prompts import teacher_prompt
from rlt_teacher_server.engine.base import Engine, Sample, SampleRequest
from rlt_teacher_server.engine.loading import make_engines
from rlt_teacher_server.model import TeacherModel, load_model
from rlt_teacher_server.settings import Settings

ENGINES = ["transformers", pytest.param("vllm", marks=pytest.mark.engine)]
CLOSE = "#"


@pytest.fixture(scope="session")
def mini() -> Format:
    return shipped_formats()["mini"]


@pytest.fixture(scope="session")
def policy(tiny_model: Path) -> TeacherModel:
    return load_model(str(tiny_model))


@pytest.fixture(scope="session")
def prompt(policy: TeacherModel, mini: Format) -> list[int]:
    """A teacher's prompt: a chain of four operations and its result."""
    codec = policy.codec
    return codec.encode(teacher_prompt(codec, mini, mini.probe.question, mini.probe.answer)).ids


@pytest.fixture(scope="session")
def close_id(policy: TeacherModel) -> int:
    [token] = policy.codec.tokenizer.convert_tokens_to_ids([CLOSE])
    return token


@pytest.fixture(scope="session", params=ENGINES)
def engine_address(request: pytest.FixtureRequest) -> str:
    return "transformers" if request.param == "transformers" else request.getfixturevalue("vllm_engine")


@pytest.fixture(scope="session")
def make(tiny_model: Path, policy: TeacherModel, prompt: list[int]) -> Callable[[str], Engine]:
    """An engine made as the server makes it."""

    def from_address(address: str) -> Engine:
        settings = Settings(model=str(tiny_model), engine=address, format="mini", threads=1)
        addresses = {} if address == "transformers" else {"vllm": address}
        [engine] = make_engines(settings, policy, prompt, addresses).values()
        return engine

    return from_address


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(make: Callable[[str], Engine], engine_address: str) -> AsyncIterator[Engine]:
    async with make(engine_address) as running:
        yield running


@pytest.fixture
def ask(prompt: list[int], close_id: int) -> Callable[..., SampleRequest]:
    """A request as /explain makes it, unless told otherwise."""

    def build(**given: Any) -> SampleRequest:
        usual = {"prompt_token_ids": prompt, "max_tokens": 27, "seed": 1, "temperature": 0.7}
        return SampleRequest(**(usual | {"stop_token_ids": (close_id,)} | given))

    return build


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Callable[..., list[list[float]]]:
    """Log-probs of the whole vocabulary at each place of given ids, shape [T][V], by a plain forward pass over prompt
    and ids, all logits at once: none of our code."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    @torch.inference_mode()
    def logprobs(prompt: list[int], ids: list[int], temperature: float) -> list[list[float]]:
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / temperature
        return logits.log_softmax(-1).tolist()

    return logprobs


@pytest.fixture(scope="session")
def same() -> Callable[[Sample, Sample], bool]:
    return lambda left, right: left.token_ids == right.token_ids
