"""`rlt-trainer rl`: everything of a run put together."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from accelerate.utils import broadcast_object_list, gather_object
from anyio.from_thread import BlockingPortal, start_blocking_portal
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.grpo_trainer import GRPOTrainer

from rlt_trainer import checkpoints, record
from rlt_trainer.answers import check_right_answer
from rlt_trainer.callbacks import Sealing, equip
from rlt_trainer.config.rl import RewardSource, RLConfig, RolloutEngine
from rlt_trainer.config.sections import TextRole
from rlt_trainer.data import read_rows
from rlt_trainer.errors import BadConfig, BadData
from rlt_trainer.keys import key_of
from rlt_trainer.models import load_codec, load_model, lora_config, without_dropout
from rlt_trainer.rl.completions import CompletionTables
from rlt_trainer.rl.engines import Completion, Engine, Published, TeacherEngine, VLLMEngine
from rlt_trainer.rl.failures import Failures
from rlt_trainer.rl.generation import in_place_of_vllm
from rlt_trainer.rl.grpo import Trainer, grpo_arguments
from rlt_trainer.rl.mismatch import Watch
from rlt_trainer.rl.problems import Problems
from rlt_trainer.rl.publishing import Versions
from rlt_trainer.rl.rewards import AnswerRewards, Rewards, ServerRewards
from rlt_trainer.rl.rewards.students import Student
from rlt_trainer.rl.rollout import Rolled, RollOut, Sampled, sample_seed
from rlt_trainer.rl.traces import Explainer
from rlt_trainer.rl.turns import TurnEnds, TurnOver, Turns
from rlt_trainer.saving import save_trained, write_weights
from rlt_trainer.stopping import Stop, Stopping
from rlt_trainer.texts import Writer, named_format

__all__ = ["run"]

log = logging.getLogger(__name__)

REFERENCE: Final = "reference"  # folder in a checkpoint: the model that the KL penalty holds to
ADAPTER: Final = "lora_"  # in the names of an adapter's tensors
_NO_TOKEN: Final = 0.0  # log-prob of the token that stands for a completion that there is none of


def run(config: RLConfig) -> Path:
    """Train; go on from the newest checkpoint where there is one.

    Returns:
        The folder of the finished model.

    Raises:
        RLTError: see `rlt_trainer.errors` and `rlt_client.errors`.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of each model written: one a step
    turns = Turns(config) if config.turns else None
    with Stop() as stop, start_blocking_portal() as portal:
        while isinstance(ended := _train(config, portal, stop, turns), TurnOver):
            assert turns is not None
            portal.call(turns.exchange, ended, turns.distil(ended), stop)
            config = _going_on(config)
        return ended


def _going_on(config: RLConfig) -> RLConfig:
    """The next turn goes on from the checkpoint of the last one, whatever the run was told of earlier runs."""
    return config.model_copy(update={"checkpoints": config.checkpoints.model_copy(update={"resume": True})})


def _train(config: RLConfig, portal: BlockingPortal, stop: Stop, turns: Turns | None) -> Path | TurnOver:
    """To the end of the run or of a turn; nothing of the model and its optimizer is held after that."""
    session = _Session(config, portal, stop, turns)
    try:
        return session.train()
    except TurnOver as over:
        session.explain(over)
        return over.with_traceback(None)
    finally:
        session.close()


class _Session:
    """One run, or a turn of it, in one process."""

    def __init__(self, config: RLConfig, portal: BlockingPortal, stop: Stop, turns: Turns | None) -> None:
        self._config = config
        self._portal = portal
        self._stop = stop
        self._turns = turns
        arguments = grpo_arguments(config)  # first: it knows the processes that all else is divided among
        self._resume = checkpoints.starting_point(config.output, resume=config.checkpoints.resume)
        self._before = (checkpoints.sealed(self._resume) or {}) if self._resume else {}
        self._writer = Writer(load_codec(config.model), named_format(config.texts.format, config.texts.formats))
        self._problems = _problems(config, self._writer)
        self._engine = portal.call(self._make_engine)
        self._rewards = portal.call(self._make_rewards)
        together = config.rollout.together
        self._roll = RollOut(self._engine, self._rewards, overlap=config.reward.overlap, together=together)
        self._failures = Failures(config.reward.max_failed, config.reward.window, self._before.get("failures", ()))
        self._versions = Versions(config.rollout.weights, keep=config.rollout.keep)
        self._tables = CompletionTables(config.output / "completions", self._writer)
        self._published: Published | None = None
        self._student: Student | None = None
        self._publishing_s = 0.0
        self._rolled: Rolled | None = None
        self._trainer = self._make_trainer(arguments)

    def train(self) -> Path:
        if self._trainer.accelerator.is_main_process:
            record.keep(self._config, goes_on=self._resume is not None)
        self._trainer.train(resume_from_checkpoint=str(self._resume) if self._resume else None)
        self._stop.check_done(self._trainer.state)
        return save_trained(self._trainer, self._config.model, self._config.output)

    def explain(self, over: TurnOver) -> None:
        """In every process: what the next turn's student learns from."""
        assert self._turns is not None
        problems = [self._problems[key] for key in self._problems.dataset["prompt"]]
        explainer = Explainer(self._engine, self._writer, weights=over.weights, seed=self._config.seed, step=over.step)
        self._portal.call(self._turns.explain, over, problems, explainer, self._stop)

    def close(self) -> None:
        self._portal.call(self._engine.aclose)
        self._portal.call(self._rewards.aclose)

    # What it is made of

    async def _make_engine(self) -> Engine:
        config, format = self._config, self._writer.format
        close = format.teacher.close if config.role is TextRole.teacher else format.student.after_answer.strip()
        stop, key = [close] if close else [], key_of(config.rollout.key_env)
        if config.rollout.engine is RolloutEngine.teacher:
            return TeacherEngine(config.rollout, key=key, stop=stop)
        eos = self._writer.codec.eos_token_id
        return VLLMEngine(config.rollout, key=key, stop=stop, stop_ids=[] if eos is None else [eos])

    async def _make_rewards(self) -> Rewards:
        config = self._config
        if config.reward.source is RewardSource.answer:
            return AnswerRewards(config.reward.match, self._writer)
        return ServerRewards(
            config.reward,
            key=key_of(config.reward.key_env),
            writer=self._writer,
            temperature=config.rollout.temperature,
        )

    def _make_trainer(self, arguments: Any) -> Trainer:
        config = self._config
        model = without_dropout(load_model(config.model))
        if self._resume is not None and (self._resume / REFERENCE).is_dir():
            model.config._name_or_path = str(self._resume / REFERENCE)  # where TRL loads the reference from
        with in_place_of_vllm(self._publish), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # may change, but TRL is pinned
            try:
                trainer = Trainer(
                    watch=Watch(config.mismatch, config.model.dtype),
                    model=model,
                    reward_funcs=[self._worth],
                    args=arguments,
                    train_dataset=self._problems.dataset,
                    processing_class=self._writer.codec.tokenizer,
                    peft_config=lora_config(config.model.lora),
                    rollout_func=self._roll_out,
                )
            except ValueError as error:  # such as LoRA targets that the model lacks
                raise BadConfig(str(error)) from error
        equip(trainer, *self._callbacks(trainer))
        return trainer

    def _callbacks(self, trainer: Trainer) -> Sequence[TrainerCallback]:
        moved = trainer.ref_model is not None and self._config.grpo.reference.sync_every > 0
        extras = [partial(self._save_reference, trainer)] if moved else []
        sealing = Sealing(self._config.checkpoints.keep, extras, self._facts)
        ends = [TurnEnds(self._config.turns.steps)] if self._config.turns else []
        return [sealing, Stopping(self._stop, every=self._config.grpo.iterations), *ends]

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint says of its last step."""
        student = self._student.revision if self._student else None
        return {"revision": self._weights.revision, "student": student, "failures": self._failures.steps}

    def _save_reference(self, trainer: Trainer, folder: Path) -> None:
        state = trainer.accelerator.get_state_dict(trainer.ref_model)
        if trainer.accelerator.is_main_process:
            trainer.accelerator.unwrap_model(trainer.ref_model).save_pretrained(folder / REFERENCE, state_dict=state)

    # Weights

    @property
    def _weights(self) -> Published:
        assert self._published is not None  # TRL publishes before it asks for completions
        return self._published

    def _publish(self) -> None:
        """In every process: the weights of this step are with the engine, and it samples with them."""
        began = time.perf_counter()
        trainer, lora = self._trainer, self._config.model.lora is not None
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        told: list[Published | None] = [None]
        if trainer.accelerator.is_main_process:
            step, model = trainer.state.global_step, trainer.accelerator.unwrap_model(trainer.model)
            own = {name: value for name, value in state.items() if not lora or ADAPTER in name}
            tokenizer, dtype = self._writer.codec.tokenizer, self._config.model.dtype
            folder = self._versions.write(step, lambda path: write_weights(path, model, own, tokenizer, dtype))
            told = [self._portal.call(partial(self._engine.publish, folder, lora=lora))]
            self._versions.prune(step)
        broadcast_object_list(told)
        self._published = told[0]
        if self._turns is not None:
            self._turns.check(trainer.state.global_step, self._weights)
        if self._student is None and isinstance(self._rewards, ServerRewards):
            self._student = self._portal.call(self._rewards.hold, self._wanted_student())
            self._portal.call(self._rewards.prove)
        self._publishing_s = time.perf_counter() - began

    def _wanted_student(self) -> Student | None:
        """Who has to reward; None where the run has just begun, and takes the one that is served."""
        made = self._turns.student(self._trainer.state.global_step) if self._turns else None
        before = self._before.get("student")
        return made or (Student(before) if before else None)

    # Completions

    def _roll_out(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's rollout function, in every process for its own part of the batch."""
        step, first = trainer.state.global_step, trainer.accelerator.process_index * len(prompts)
        seeds = [sample_seed(self._config.seed, step, first + place) for place in range(len(prompts))]
        problems = [self._problems[key] for key in prompts]
        self._rolled = self._portal.call(self._roll, problems, seeds, self._weights)
        return self._columns(self._rolled.samples)

    def _columns(self, samples: Sequence[Sampled]) -> dict[str, list[Any]]:
        """What was sampled, as TRL wants it. What has no reward is not learned from."""
        eos = self._writer.codec.eos_token_id or 0
        ids, logprobs, masks = [], [], []
        for each in samples:
            made = each.completion if isinstance(each.completion, Completion) else None
            tokens = list(made.token_ids) if made and made.token_ids else [eos]
            ids.append(tokens)
            logprobs.append(list(made.logprobs) if made and made.token_ids else [_NO_TOKEN])
            masks.append([int(each.rewarded.reward is not None)] * len(tokens))
        columns: dict[str, list[Any]] = {
            "prompt_ids": [list(each.problem.prompt_ids) for each in samples],
            "completion_ids": ids,
            "logprobs": logprobs,
        }
        return columns if all(map(all, masks)) else {**columns, "env_mask": masks}

    def _worth(self, log_metric: Any, **_: Any) -> list[float | None]:
        """TRL's reward function: the rewards are there already; figures are told.

        Raises:
            RewardsMissing: in every process alike.
        """
        assert self._rolled is not None
        samples = self._rolled.samples
        rewarded = [each.rewarded for each in samples]
        figures = {
            "time/publishing_s": self._publishing_s,
            "time/generating_s": self._rolled.generating_s,
            "time/waiting_for_rewards_s": self._rolled.waiting_s,
            "completions/cut_off": sum(_cut_off(each) for each in samples) / len(samples),
        }
        for name in {name for each in rewarded for name in each.components}:
            found = [each.components[name] for each in rewarded if name in each.components]
            figures[f"reward/{name}"] = sum(found) / len(found)
        figures["reward/missing"] = self._failures.saw(gather_object([each.failure for each in rewarded]))
        if self._config.turns:
            figures["turn"] = self._trainer.state.global_step // self._config.turns.steps
        for name, value in figures.items():
            log_metric(name, value)
        self._tables.saw(self._trainer.state.global_step, samples, every=self._config.logging.completions_every)
        return [each.reward for each in rewarded]

    _worth.__name__ = "reward"  # in the names of TRL's figures


def _problems(config: RLConfig, writer: Writer) -> Problems:
    rows = read_rows(config.data, want=("question", "answer"), may=("system",))
    room = config.texts.max_tokens - config.rollout.max_tokens
    if room < 1:
        raise BadConfig("texts.max_tokens must leave room for a prompt beside rollout.max_tokens")
    if config.reward.source is RewardSource.answer:
        for row in rows:
            check_right_answer(config.reward.match, row["answer"])
    problems = Problems(rows, writer, config.role, room)
    if problems.too_long:
        log.warning("%d problems have prompts of over %d tokens and are left out", problems.too_long, room)
    if len(problems) < (at_once := config.training.batch_size // config.grpo.generations):
        raise BadData(
            f"{config.data.path}: {len(problems)} problems, where an update takes {at_once} different ones "
            "(training.batch_size / grpo.generations)"
        )
    return problems


def _cut_off(sample: Sampled) -> bool:
    return isinstance(sample.completion, Completion) and sample.completion.finish_reason == "length"
