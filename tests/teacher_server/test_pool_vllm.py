"""Two real vLLM servers as one: the death of either in mid-generation, and its return."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import psutil
import pytest
from plugins.fake_engine import eventually

from rlt_client.prompts import teacher_prompt
from rlt_local.ports import free
from rlt_teacher_server.engine.base import Adapter, FullWeights, SampleRequest
from rlt_teacher_server.engine.pool import Engines, Held, PoolOptions
from rlt_teacher_server.engine.vllm import VLLMEngine
from rlt_teacher_server.model import load_model

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(900)]  # vLLM is started three times

UP_S = 240.0  # vLLM takes up to a minute to tell its settings the first time; it then reads a model and an adapter
SAMPLES = 8
TOKENS = 200


@dataclass
class Pair:
    """Two servers, by port."""

    engines: dict[str, VLLMEngine]
    ports: dict[str, int]
    prompt: list[int]

    def asked(self, seed: int) -> SampleRequest:
        """So hot that it ends by itself after some eighty tokens."""
        return SampleRequest(self.prompt, max_tokens=TOKENS, seed=seed, temperature=1.9)

    def kill(self, name: str) -> None:
        """All of its processes, at once."""
        flag = f"--port {self.ports[name]}"
        lines = [(process, " ".join(process.info["cmdline"] or [])) for process in psutil.process_iter(["cmdline"])]
        for process in [process for process, line in lines if flag in line]:
            for each in (*process.children(recursive=True), process):
                os.kill(each.pid, signal.SIGKILL)


@pytest.fixture
def vllm_thread():
    """Where servers are started: the kernel ends them with the thread that started them."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.fixture
def model(tiny_model):
    return load_model(str(tiny_model))


@pytest.fixture
def base(model):
    return FullWeights(model.ref.revision, model.folder)


@pytest.fixture
def pair(model, base, mini):
    ports = dict(zip("ab", free(2), strict=True))
    probe = model.codec.encode(teacher_prompt(model.codec, mini, mini.probe.question, mini.probe.answer)).ids
    engines = {
        name: VLLMEngine(f"http://127.0.0.1:{port}", probe=probe, weights=base, eos_token_ids=model.eos_token_ids)
        for name, port in ports.items()
    }
    return Pair(engines, ports, probe)


async def test_a_dead_engine_s_samples_are_delivered_by_the_other_and_it_comes_back(
    pair, base, start_vllm, vllm_thread, other_model, tiny_adapter
):
    adapter = Adapter("run@1-x", "other+1", tiny_adapter(3))
    new = FullWeights("other", other_model)
    policies = [Held(new), Held(new, adapter)]
    loop = asyncio.get_running_loop()
    with ExitStack() as servers:
        begin = lambda name: servers.enter_context(start_vllm(pair.ports[name]))  # noqa: E731
        await asyncio.gather(*(loop.run_in_executor(vllm_thread, begin, name) for name in "ab"))
        try:
            async with Engines(pair.engines, base, pair.prompt, options=PoolOptions(max_waiting=64)) as pool:
                await eventually(lambda: all(info.up for info in pool.figures()), UP_S)
                await pool.replace(new, lambda: None)
                await pool.add(adapter)
                alone = [await sampled(pool, pair, held) for held in policies]
                assert alone[0] != alone[1]

                events = await interrupted(pool, pair, policies, alone)
                assert 0 < events["restarted"] <= SAMPLES
                assert events["delivered"] >= 2 * 2 * SAMPLES  # what was under way, and what was asked after the death
                await eventually(lambda: [info.name for info in pool.figures() if info.up] == ["b"])

                starting = loop.run_in_executor(vllm_thread, begin, "a")
                while not starting.done():  # the other one serves meanwhile
                    assert await sampled(pool, pair, policies[1]) == alone[1]
                    await asyncio.sleep(5)  # the cores are for the start
                await starting
                await eventually(lambda: all(info.up for info in pool.figures()), UP_S)
                assert await pair.engines["a"].holds() == new
                assert adapter.name in await pair.engines["a"].adapters()
                for name in pair.engines:
                    request = pair.asked(0)
                    assert (await pair.engines[name].sample(request)).token_ids == alone[0][0]
        finally:
            await loop.run_in_executor(vllm_thread, servers.close)


async def sampled(pool, pair, held):
    async with pool.session(held) as session:
        group = session.group()
        samples = await asyncio.gather(*(group.sample(pair.asked(seed)) for seed in range(SAMPLES)))
        return [sample.token_ids for sample in samples]


async def interrupted(pool, pair, policies, alone):
    """A question for each policy, each in an engine of its own; one engine is killed while both write.

    Each place of a group asks again until then: engines never run out of work, however slowly the other one begins.
    """
    killed = asyncio.Event()
    events, wrote = Counter(), set()

    async def place(group, which, seed):
        told = []

        def watch(ids):
            wrote.add(which)
            told.extend(ids)

        def restarted():
            events["restarted"] += 1
            told.clear()

        while True:
            last = killed.is_set()
            told.clear()
            done = await group.sample(pair.asked(seed), watch, restarted)
            assert told == done.token_ids == alone[which][seed]  # what a stream showed is what was delivered
            events["delivered"] += 1
            if last:
                return

    async with pool.session(policies[0]) as first, pool.session(policies[1], beside=first) as second:
        groups = [first.group(), second.group()]
        async with asyncio.TaskGroup() as tasks:
            for which, group in enumerate(groups):
                for seed in range(SAMPLES):
                    tasks.create_task(place(group, which, seed))
            await eventually(lambda: len(wrote) == 2 and all(info.samples for info in pool.figures()))
            pair.kill("a")
            killed.set()
    return events
