"""The code on the pages of docs/trainers, taken from them and run.

Trainers that cannot be installed beside this project are stood in for by modules of the same names. Each stand-in
keeps what it says, from the version that its page names.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rlt_client.errors import ItemError
from rlt_client.integrations import trl
from rlt_client.integrations.settings import PREFIX, SHARED, HookSettings, variable
from rlt_client.schemas.reward import RewardItem, RewardRequest, SpecRequest
from rlt_client.testing import FakePlatform, hashed_reward

PAGES = Path(__file__).parents[3] / "docs" / "trainers"
OURS = ("README", "trl", "verl", "ms_swift", "areal", "skyrl", "open_instruct", "easyr1")
CODE = re.compile(r"```python\n# file: (\S+)\n(.*?)```", re.DOTALL)

Load = Callable[[str, str], Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The module that a page's file makes: written where the user would write it, and imported by its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def imported(page: str, file: str) -> Any:
        code = dict(CODE.findall((PAGES / f"{page}.md").read_text()))[file]
        (tmp_path / file).write_text(code)
        name = file.removesuffix(".py")
        spec = importlib.util.spec_from_file_location(name, tmp_path / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return imported


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A module of a trainer, its parents included."""

    def put(name: str, **names: Any) -> None:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
        module = ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def configured(fake_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLT_REWARD_URL", fake_url)
    monkeypatch.setenv("RLT_HOOK_KL", "hosted")


def row(number: int) -> dict[str, str]:
    return {"question": f"question {number}", "answer": f"answer {number}"}


def expected(number: int) -> float:
    return hashed_reward(RewardItem(**row(number), completion=f"because {number}"))


class TestPages:
    @pytest.mark.parametrize("page", OURS)
    def test_every_variable_and_setting_is_one(self, page: str) -> None:
        text = (PAGES / f"{page}.md").read_text()
        known = {variable(name) for name in HookSettings.model_fields}
        assert set(re.findall(rf"\b(?:{PREFIX}[A-Z_]+|{'|'.join(SHARED.values())})\b", text)) <= known
        assert set(re.findall(r"custom_reward_function\.reward_kwargs\.(\w+)", text)) <= set(HookSettings.model_fields)

    def test_every_setting_stands_in_the_table(self) -> None:
        rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", (PAGES / "README.md").read_text(), re.MULTILINE)
        assert dict(rows) == {name: variable(name) for name in HookSettings.model_fields}

    @pytest.mark.parametrize("page", OURS[1:])
    def test_every_page_names_the_version_that_was_read(self, page: str) -> None:
        assert re.search(r"^Read(?: and run)?: .*\d", (PAGES / f"{page}.md").read_text(), re.MULTILINE)
        assert f"({page}.md)" in (PAGES / "README.md").read_text()

    def test_every_file_on_a_page_is_run_here(self) -> None:
        files = {file for page in OURS for file, _ in CODE.findall((PAGES / f"{page}.md").read_text())}
        own = Path(__file__).read_text()
        assert files == {file for file in files if f'"{file}"' in own}


def test_the_prompt_of_a_row(load: Load) -> None:
    from rlt_trainer.tiny import make_tokenizer

    made = load("README", "make_prompts.py").with_prompt(
        {"question": "Q 36 A +5", "answer": "41"}, make_tokenizer(), "mini"
    )
    assert made["prompt"] == "Q 36 A +5 = 41 > "
    assert made["question"] == "Q 36 A +5"


class TestTRL:
    def test_the_trainer_is_made(
        self, load: Load, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import trl as library

        from rlt_trainer.tiny import make_tokenizer
        from rlt_trainer.tiny.model import load_model

        config = functools.partial(library.GRPOConfig, use_cpu=True, bf16=False, report_to=[])
        monkeypatch.setattr(library, "GRPOConfig", config)  # this machine has no GPU, which the page does not ask about
        rows = [{"prompt": "Q 36 A +5 = 41 >", "question": "Q 36 A +5", "answer": "41"}] * 16
        make = load("trl", "train.py").make_trainer
        trainer = make(load_model(base_model), make_tokenizer(), rows, str(tmp_path))
        assert trainer.reward_func_names == ["rlt"]
        assert trainer.args.temperature == 0.7

    def test_a_rollout_gives_what_trl_and_the_reward_need(self, load: Load) -> None:
        module = load("trl", "rollout.py")
        module.generate = lambda prompts, trainer: ([[1]], [[2, 3]], [[-0.1, -0.2]])
        output = module.rollout(["p"], None)
        assert {"prompt_ids", "completion_ids", "logprobs"} <= set(output)  # `required_keys` of TRL 1.16
        assert output[HookSettings.model_fields["logprobs_key"].default] == output["logprobs"]

    def test_the_name_on_the_page_is_there(self) -> None:
        assert "rlt_client.integrations.trl.reward_from_environment" in (PAGES / "trl.md").read_text()
        assert inspect.iscoroutinefunction(trl.reward_from_environment)


def test_ms_swifts_plugin(load: Load, swift_rewards: Any, configured: None) -> None:
    load("ms_swift", "rlt_plugin.py")
    made = swift_rewards.orms["rlt"](args=None)
    columns = {name: [row(i)[name] for i in range(3)] for name in row(0)}
    assert asyncio.run(made([f"because {i}" for i in range(3)], **columns)) == [expected(i) for i in range(3)]
    assert made.hook.settings.invalid_reward == -30


class RLVRWorkflow:
    """AReaL 1.0.4: the constructor's first argument, and what is awaited with which arguments in an episode."""

    def __init__(self, reward_fn: Any, gconfig: Any, tokenizer: Any) -> None:
        self.reward_fn = reward_fn
        self.gconfig, self.tokenizer = gconfig, tokenizer
        self.async_reward_fn = self.in_a_pool

    async def in_a_pool(self, *_: Any, **__: Any) -> float:
        raise AssertionError("AsyncRewardWrapper takes 0 for a reward that is late")

    async def arun_episode(self, data: dict[str, Any], completion: str) -> float:
        assert not isinstance(self.reward_fn, str)  # a string would be imported, and wrapped, here
        reward: float = await self.async_reward_fn("the teacher's prompt", completion, [1, 2], [3], **data)
        return reward


class TestAReaL:
    def test_episodes_are_rewarded_at_the_same_time(
        self, load: Load, stand_in: Any, configured: None, fake: FakePlatform
    ) -> None:
        stand_in("areal.workflow.rlvr", RLVRWorkflow=RLVRWorkflow)
        workflow = load("areal", "rlt_areal.py").RLTWorkflow(gconfig=None, tokenizer="name")

        async def episodes() -> list[float]:
            data = [{"messages": [{"role": "user", "content": "…"}], **row(i)} for i in range(60)]
            return await asyncio.gather(*(workflow.arun_episode(own, f"because {i}") for i, own in enumerate(data)))

        assert asyncio.run(episodes()) == [expected(i) for i in range(60)]
        assert len(fake.requests) < 30

    def test_a_failure_raises_which_rejects_the_trajectory(self, load: Load, stand_in: Any, configured: None) -> None:
        stand_in("areal.workflow.rlvr", RLVRWorkflow=RLVRWorkflow)
        workflow = load("areal", "rlt_areal.py").RLTWorkflow(gconfig=None, tokenizer="name")
        with pytest.raises(ItemError, match="unreadable_sample"):
            asyncio.run(workflow.arun_episode({"question": "q"}, "because"))

    def test_the_plain_function_in_a_process_pool(self, load: Load, configured: None) -> None:
        """`AsyncRewardWrapper` runs `partial(reward_fn, …)` in a ProcessPoolExecutor."""
        function = load("areal", "rlt_areal_plain.py").reward_fn
        with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:  # Linux's default in Python 3.11
            calls = [functools.partial(function, "p", f"because {i}", [1], [2], **row(i)) for i in range(4)]
            assert [future.result(60) for future in [pool.submit(call) for call in calls]] == [
                expected(i) for i in range(4)
            ]


class BaseTextEnv:
    """skyrl-gym 0.4.0: a constructor without arguments and `step(action)`."""

    def __init__(self) -> None:
        self.turns, self.max_turns = 0, 1


class TestSkyRL:
    def test_steps_in_threads(self, load: Load, stand_in: Any, configured: None) -> None:
        stand_in("skyrl_gym.envs.base_text_env", BaseTextEnv=BaseTextEnv, BaseTextEnvStepOutput=dict)
        make = load("skyrl", "rlt_env.py").RLTEnv
        truths: list[dict[str, Any]] = [{"reward_spec": {"ground_truth": row(i)}, "max_turns": 1} for i in range(32)]
        truths[1] = {**row(1), "data_source": "own"}
        with ThreadPoolExecutor(32) as pool:  # `_run_in_executor_if_available`
            envs = [make(env_config=None, extras=extras) for extras in truths]
            outputs = list(pool.map(lambda pair: pair[1].step(f"because {pair[0]}"), enumerate(envs)))
        assert [output["reward"] for output in outputs] == [expected(i) for i in range(32)]
        assert all(output["done"] and output["observations"] == [] for output in outputs)


class VerifierFunction(ABC):
    """open-instruct e6c3044: an abstract `__call__`; `build_all_verifiers` makes every subclass with its config."""

    def __init__(self, name: str, weight: float = 1.0, verifier_config: Any = None) -> None:
        self.name, self.weight, self.verifier_config = name, weight, verifier_config

    @abstractmethod
    def __call__(
        self, tokenized_prediction: Any, prediction: Any, label: Any, query: Any = None, rollout_state: Any = None
    ) -> Any: ...


@dataclass
class VerificationResult:
    score: float
    cost: float = 0.0
    reasoning: str | None = None


class TestOpenInstruct:
    def test_a_batch_as_apply_verifiable_reward_runs_it(
        self, load: Load, stand_in: Any, configured: None, fake: FakePlatform
    ) -> None:
        names = {"VerifierFunction": VerifierFunction, "VerificationResult": VerificationResult}
        stand_in("open_instruct.ground_truth_utils", **names)
        load("open_instruct", "rlt_verifier.py")
        [subclass] = [found for found in VerifierFunction.__subclasses__() if found.__name__ == "RLTVerifier"]
        verifier: Any = subclass(SimpleNamespace())
        assert (verifier.name, verifier.weight) == ("rlt", 1.0)

        def arguments(i: int) -> dict[str, Any]:
            label = f'{{"question": "question {i}", "answer": "answer {i}"}}'
            own = {"tokenized_prediction": [1], "prediction": f"because {i}", "label": label}
            return {**own, "query": "the teacher's prompt", "rollout_state": None}

        async def batch() -> list[Any]:
            return await asyncio.gather(*(verifier.async_call(**arguments(i)) for i in range(20)))

        assert [result.score for result in asyncio.run(batch())] == [expected(i) for i in range(20)]
        assert verifier(**arguments(3)).score == expected(3)
        assert len(fake.requests) < 20

    def test_the_launcher_runs_grpo_fast_as_a_program(
        self, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "open_instruct"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "grpo_fast.py").write_text("import os\nif __name__ == '__main__':\n    os.environ['RAN'] = 'yes'\n")
        monkeypatch.setitem(sys.modules, "rlt_verifier", ModuleType("rlt_verifier"))
        monkeypatch.setenv("RAN", "no")
        load("open_instruct", "rlt_grpo.py")
        assert os.environ["RAN"] == "yes"
        for name in ("open_instruct", "open_instruct.grpo_fast"):
            sys.modules.pop(name, None)

    def test_the_mapping_on_the_page(self) -> None:
        [spec] = re.findall(r"RLT_HOOK_SPEC='([^']+)'", (PAGES / "open_instruct.md").read_text())
        settings = HookSettings.read(url="http://fake", kl="hosted", spec=spec)
        assert settings.reward_spec == SpecRequest(preset="rlt", mapping={"kind": "sigmoid"})


class TestEasyR1:
    def test_a_batch(self, load: Load, fake: FakePlatform, fake_url: str) -> None:
        """`AutoRewardManager`: the file's function with `reward_function_kwargs`, once with the whole batch."""
        module = load("easyr1", "rlt_easyr1.py")
        assert module.REWARD_TYPE == "batch"
        kwargs = {"url": fake_url, "kl": "hosted", "invalid_reward": -30}
        inputs: list[dict[str, Any]] = [
            {"response": f"because {i}", "response_length": 2, "ground_truth": row(i)} for i in range(50)
        ]
        inputs[1]["ground_truth"] = "a bare answer"
        scores = functools.partial(module.compute_score, **kwargs)(inputs)
        assert [score["overall"] for score in scores] == [-30.0 if i == 1 else expected(i) for i in range(50)]
        assert [score["failed"] for score in scores] == [float(i == 1) for i in range(50)]
        assert len({tuple(score) for score in scores}) == 1
        assert all(isinstance(value, float) for score in scores for value in score.values())
        [request] = fake.requests
        assert isinstance(request, RewardRequest)


def test_a_page_against_a_real_server(load: Load, real_url: str) -> None:
    """EasyR1's file, since it hands on everything that the server says, with the miniature's models."""
    from rlt_trainer.tiny import good_trace, problems

    made = problems(4, seed=9)
    inputs = [
        {"response": f"{good_trace(p)} #", "ground_truth": {"question": p.question, "answer": p.answer}} for p in made
    ]
    for score in load("easyr1", "rlt_easyr1.py").compute_score(inputs, url=real_url, kl="hosted"):
        total = score["r_ss"] - 3 * score["r_kl"] + score["format"]
        assert score["overall"] == pytest.approx(total, abs=1e-5)
        assert score["failed"] == 0
