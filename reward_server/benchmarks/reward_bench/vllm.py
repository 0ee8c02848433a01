"""The engine against vLLM's `prompt_logprobs`: the same model, machine, dtype and threads.

What each does: vLLM gives the log-prob of every prompt token at temperature 1, without sharing prefixes (it turns its
prefix cache off for such requests); the engine those that the reward needs, at the reward's temperature.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import torch

from reward_bench.cpu import Bench
from reward_bench.shapes import QWEN_05B
from reward_bench.workload import Workload
from rlt_bench.measure import Record, interleaved, machine, ratio
from rlt_bench.programs import started
from rlt_local.engine import engine_python
from rlt_local.ports import free
from rlt_reward_server.passes import Pass
from rlt_teacher_server.launch.command import Address, Flags, command

__all__ = ["run"]

ROOT: Final = Path(__file__).resolve().parents[3]
TOKENIZER: Final = ROOT / "tests" / "reward_server" / "golden" / "student"  # vLLM wants one; ids are sent
WORK: Final = Workload(1, 16, 120, 170, 20)
ROUNDS: Final = 3
START_S: Final = 300.0
REQUEST_S: Final = 600.0
NAME: Final = "student"
CACHE_MIB: Final = 256  # 10,000 tokens of Qwen2.5-0.5B in float32; the workload has 5,000


def run(command: str) -> Record:
    """Student passes only: 16 completions of one question."""
    record = Record("reward-vllm", command, machine())
    bench = Bench(QWEN_05B, WORK, torch.float32, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        _save(bench, Path(folder))
        passes = WORK.passes(QWEN_05B.vocab)[0]
        with _vllm(Path(folder)) as url:
            ways = {"vLLM, prompt_logprobs": lambda: _ask(url, passes), "engine, log-probs sent": bench.sent}
            seconds = interleaved(ways, rounds=ROUNDS)
    for way, took in seconds.items():
        times = ratio(seconds["vLLM, prompt_logprobs"], took)
        record.add(QWEN_05B.name, way, **{"samples/s": WORK.samples / statistics.median(took), "x vLLM": times})
    record.notes.append(f"{WORK}; float32; {ROUNDS} rounds; student only; one HTTP request of all samples to vLLM")
    return record


def _save(bench: Bench, folder: Path) -> None:
    bench.student.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())


def _ask(url: str, passes: Sequence[Pass]) -> None:
    body = {"model": NAME, "prompt": [p.ids for p in passes], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    httpx.post(f"{url}/v1/completions", json=body, timeout=REQUEST_S).raise_for_status()


@contextmanager
def _vllm(model: Path) -> Iterator[str]:
    [port] = free()
    flags = Flags(
        model, served_name=NAME, max_model_len=1024, cache_mib=CACHE_MIB, max_loras=0, threads=torch.get_num_threads()
    )
    argv, env = command(engine_python(ROOT / ".engine"), flags, Address(port=port))
    url = f"http://127.0.0.1:{port}"
    with started("vLLM", argv, env, url, "/health", START_S):
        yield url
