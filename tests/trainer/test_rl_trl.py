"""What is relied on in TRL, through TRL's own code: when it publishes, and what it learns from missing rewards."""

from __future__ import annotations

import ast
import inspect
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from plugins.scripted_rl import ScriptedEngine, ScriptedRewards
from safetensors.torch import load_file
from trl.trainer import grpo_trainer

from rlt_trainer.config import RLConfig
from rlt_trainer.errors import BadConfig, BadData, RewardsMissing
from rlt_trainer.rl import grpo, session
from rlt_trainer.rl.engines import Ask, Completion, Failed
from rlt_trainer.rl.grpo import Trainer
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards import Rewarded
from rlt_trainer.rl.run import run

GROUP = 4
USED = {"sync_weights", "vllm_client"}
ELSEWHERE = {"generate": "where there is no rollout function", "llm": "by tools, in colocate mode"}

Worth = dict[int, float | None]
"""By place in the batch; None: no reward."""

ALIKE: Worth = {place: float(place % 2) for place in range(2 * GROUP)}

Scripted = Callable[..., tuple[Path, ScriptedEngine]]


@pytest.fixture
def scripted(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Runs with a scripted engine; gives the trained model's folder and the engine. TRL's tensors go to `seen`."""

    def train(
        name: str, worth: Worth, *, tokens: Callable[[int], list[int]], failing: int | None = None, **given: Any
    ) -> tuple[Path, ScriptedEngine]:
        def make(_: Ask, place: int) -> Completion | Failed:
            if place % (2 * GROUP) == failing:
                return Failed("context_overflow", "too long")
            ids = tokens(place % (2 * GROUP))
            return Completion(ids, [-1.0] * len(ids), "stop", "")

        places = iter(range(10**6))

        def score(_: Problem, __: Completion) -> Rewarded:
            value = worth[next(places) % (2 * GROUP)]
            return Rewarded(value, failure=None if value is not None else "kl_unavailable")

        engine, rewards = ScriptedEngine(make), ScriptedRewards(score)
        monkeypatch.setattr(session, "make_engine", _giving(engine))
        monkeypatch.setattr(session, "make_rewards", _giving(rewards))
        data = tmp_path / "problems.jsonl"
        rows = [{"question": "Q 36 A +5 B *3 C +11 D +5", "answer": "17"}, {"question": "Q 1 A +2", "answer": "3"}]
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return run(_config(tmp_path / name, tiny_base, data, **given)), engine

    return train


def _giving(made: Any) -> Callable[..., Any]:
    async def give(*_: Any) -> Any:
        return made

    return give


def _config(output: Path, model: Path, data: Path, /, **given: Any) -> RLConfig:
    told: dict[str, Any] = {
        "output": output,
        "model": {"name": str(model), "dtype": "float32", "gradient_checkpointing": False},
        "data": {"path": str(data)},
        "texts": {"format": "mini", "max_tokens": 64},
        "rollout": {"weights": output.with_suffix(".weights"), "max_tokens": 8},
        "reward": {"overlap": False, "max_failed": 1.0},  # not overlapped: scored in the order of the batch
        "grpo": {"generations": GROUP},
        "mismatch": {"least_tokens": 10**9},  # the script's log-probs are nobody's
        "training": {"steps": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3, "cpu": True},
        "logging": {"to": [], "completions_every": 0},
        "checkpoints": {"every": 0},
    }
    for table, value in given.items():
        told[table] = {**told[table], **value}
    return RLConfig(**told)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What TRL made of each step's samples, in their order."""
    found: list[dict[str, Any]] = []
    original = Trainer._generate_and_score_completions

    def watching(self: Trainer, inputs: Any) -> dict[str, Any]:
        found.append(original(self, inputs))
        return found[-1]

    monkeypatch.setattr(Trainer, "_generate_and_score_completions", watching)
    return found


def same(place: int) -> list[int]:
    return [place + 1, place + 2, place + 3]


def test_the_private_name_is_used_as_it_was() -> None:
    """`rlt_trainer.rl.generation` stands in for TRL's `VLLMGeneration`: look there if this fails."""
    assert hasattr(grpo_trainer, "VLLMGeneration"), "TRL has no VLLMGeneration any more: find what syncs weights now"
    tree = ast.parse(inspect.getsource(grpo_trainer))
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func) == "VLLMGeneration"]
    assert len(made) == 1, "TRL makes its VLLMGeneration in another place too"
    assert not made[0].args, "TRL passes arguments by place: the stand-in takes them by name alone"
    touched = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _name(node.value) == "vllm_generation"
    }
    assert touched == USED | ELSEWHERE.keys(), f"TRL uses {touched} of it: the stand-in has {USED}"
    asked = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _name(node.value) == "vllm_client"
    }
    assert asked == {"get_server_info"}, f"TRL asks its client for {asked}"


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_publishes_once_a_step_before_it_samples(scripted: Scripted, seen: list[dict[str, Any]]) -> None:
    """Two micro-batches an update, and two updates on the same completions: 4 updates are 2 roll-outs."""
    worth = dict.fromkeys(range(8), 1.0) | {0: 0.0, 5: 0.0}
    _, engine = scripted(
        "twice", worth, tokens=same, grpo={"iterations": 2}, training={"steps": 4}, checkpoints={"every": 2}
    )
    assert [folder.name for folder, _ in engine.published] == ["step-000000", "step-000002"]
    assert len(seen) == 2
    assert len({ask.seed for ask in engine.asked}) == 16  # no two samples of a run share one


def test_nothing_drops_out_of_what_is_compared_with_the_engine(
    scripted: Scripted, seen: list[dict[str, Any]], tiny_base: Path, tmp_path: Path
) -> None:
    dropping = tmp_path / "dropping"
    shutil.copytree(tiny_base, dropping)
    told = json.loads((dropping / "config.json").read_text())
    (dropping / "config.json").write_text(json.dumps({**told, "attention_dropout": 0.5}))
    for name, model in (("whole", tiny_base), ("dropping", dropping)):
        scripted(name, ALIKE, tokens=same, training={"steps": 1}, model={"name": str(model)})
    assert torch.equal(seen[0]["old_per_token_logps"], seen[1]["old_per_token_logps"])


def test_fewer_problems_than_an_update_takes_are_refused(scripted: Scripted) -> None:
    """TRL draws no batch of them, and its trainer ends at once as if all were done."""
    with pytest.raises(BadData, match=r"1 problems, where an update takes 2 different ones"):
        scripted("few", ALIKE, tokens=same, data={"limit": 1})


def test_what_trl_refuses_is_told_as_a_setting(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does bfloat16 on a device that has none."""

    def refuses(**_: Any) -> Any:
        raise ValueError("Your setup doesn't support bf16")

    monkeypatch.setattr(grpo, "GRPOConfig", refuses)
    with pytest.raises(BadConfig, match="training: Your setup doesn't support bf16"):
        scripted("refused", ALIKE, tokens=same)


def test_figures_that_take_no_notice_of_the_closing_tag_are_not_told(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, Any] = {}
    log = transformers.Trainer.log
    monkeypatch.setattr(transformers.Trainer, "log", lambda self, logs, *more: (logged.update(logs), log(self, logs)))
    scripted("figures", ALIKE, tokens=same, training={"steps": 1})
    assert {"completions/cut_off", "completions/mean_length", "reward"} <= logged.keys()
    assert not any("clipped_ratio" in name or "terminated" in name for name in logged)


def test_missing_rewards_give_no_advantage(scripted: Scripted, seen: list[dict[str, Any]]) -> None:
    """Of the first group one sample is scored: nothing to compare it with. Of the second three are:
    mean 2/3, deviation √((2·(1/3)² + (2/3)²)/2) = √(1/3); (1 − 2/3)/(√(1/3) + 1e-4), (0 − 2/3)/(√(1/3) + 1e-4).
    """
    worth: Worth = {0: 1.0, 1: None, 2: None, 3: None, 4: 1.0, 5: 0.0, 6: None, 7: 1.0}
    scripted("few", worth, tokens=same, training={"steps": 1})
    spread = math.sqrt(1 / 3) + 1e-4
    expected = [0, 0, 0, 0, 1 / 3 / spread, -2 / 3 / spread, 0, 1 / 3 / spread]
    torch.testing.assert_close(seen[0]["advantages"], torch.tensor(expected), atol=1e-6, rtol=0)
    learned = [bool(row.all()) for row in seen[0]["tool_mask"]]
    assert learned == [True, False, False, False, True, True, False, True]


def test_nothing_is_learned_from_what_has_no_reward(scripted: Scripted) -> None:
    """Whatever it says: neither by the advantage nor by the divergence from the reference."""
    worth: Worth = {**dict.fromkeys(range(8), 1.0), 0: 0.0, 5: 0.0, 6: None}

    def other(place: int) -> list[int]:
        return [40, 41, 42] if place == 6 else same(place)

    one, _ = scripted("one", worth, tokens=same)
    two, _ = scripted("two", worth, tokens=other)
    three, _ = scripted("three", {**worth, 6: 0.0}, tokens=other)
    first, second, third = (load_file(folder / "model.safetensors") for folder in (one, two, three))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)  # with a reward it does matter


def test_a_completion_that_there_is_none_of_is_left_out(scripted: Scripted, seen: list[dict[str, Any]]) -> None:
    worth: Worth = {place: float(place % 2) for place in range(8)}
    scripted("none", worth, tokens=same, failing=2, training={"steps": 1})
    assert seen[0]["completion_mask"][2].tolist() == [1, 0, 0]  # one token stands for it
    assert not seen[0]["tool_mask"][2, 0]
    assert seen[0]["advantages"][2] == 0


def test_too_many_missing_rewards_end_the_run_with_their_causes(scripted: Scripted) -> None:
    with pytest.raises(RewardsMissing, match=r"8 of the last 8 completions have no reward, .* kl_unavailable 8"):
        scripted("missing", dict.fromkeys(range(8)), tokens=same, reward={"max_failed": 0.02})
