"""What one run, or a turn of it, does in one process: trained by TRL, which asks here for completions and rewards."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from accelerate.utils import broadcast_object_list, gather_object
from anyio.from_thread import BlockingPortal
from transformers import TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

from rlt_trainer import checkpoints, record
from rlt_trainer.callbacks import Sealing, equip
from rlt_trainer.config.rl import RLConfig
from rlt_trainer.errors import BadConfig
from rlt_trainer.models import load_codec, load_model, lora_config, without_dropout
from rlt_trainer.rl.columns import columns, figures_of
from rlt_trainer.rl.completions import CompletionTables
from rlt_trainer.rl.engines import Published
from rlt_trainer.rl.failures import Failures
from rlt_trainer.rl.generation import in_place_of_vllm
from rlt_trainer.rl.grpo import Trainer, grpo_arguments
from rlt_trainer.rl.making import find_problems, make_engine, make_rewards
from rlt_trainer.rl.mismatch import Watch
from rlt_trainer.rl.publishing import Versions
from rlt_trainer.rl.rewards import ServerRewards
from rlt_trainer.rl.rewards.students import Student
from rlt_trainer.rl.rollout import Rolled, RollOut, sample_seed
from rlt_trainer.rl.traces import Explainer
from rlt_trainer.rl.turns import TurnEnds, TurnOver, Turns
from rlt_trainer.saving import save_trained, write_weights
from rlt_trainer.stopping import Stop, Stopping
from rlt_trainer.texts import Writer, named_format

__all__ = ["Session"]

REFERENCE: Final = "reference"  # folder in a checkpoint: the model that the KL penalty holds to
ADAPTER: Final = "lora_"  # in the names of an adapter's tensors


class Session:
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
        self._problems = find_problems(config, self._writer)
        self._engine = portal.call(make_engine, config, self._writer)
        self._rewards = portal.call(make_rewards, config, self._writer)
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
        return columns(self._rolled.samples, self._writer.codec.eos_token_id)

    def _worth(self, log_metric: Any, **_: Any) -> list[float | None]:
        """TRL's reward function: the rewards are there already; figures are told.

        Raises:
            RewardsMissing: in every process alike.
        """
        assert self._rolled is not None
        samples = self._rolled.samples
        rewarded = [each.rewarded for each in samples]
        figures = {"time/publishing_s": self._publishing_s, **figures_of(self._rolled)}
        figures["reward/missing"] = self._failures.saw(gather_object([each.failure for each in rewarded]))
        if self._config.turns:
            figures["turn"] = self._trainer.state.global_step // self._config.turns.steps
        for name, value in figures.items():
            log_metric(name, value)
        self._tables.saw(self._trainer.state.global_step, samples, every=self._config.logging.completions_every)
        return [each.reward for each in rewarded]

    _worth.__name__ = "reward"  # in the names of TRL's figures
