"""`rlt-trainer rl`: everything of a run put together."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import broadcast_object_list, gather_object
from anyio.from_thread import BlockingPortal, start_blocking_portal
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from rlt_trainer import checkpoints
from rlt_trainer.arguments import processes, shared_arguments
from rlt_trainer.callbacks import Sealing
from rlt_trainer.config.rl import RewardSource, RLConfig
from rlt_trainer.config.sections import TextRole
from rlt_trainer.data import read_rows
from rlt_trainer.errors import BadConfig
from rlt_trainer.models import load_codec, load_model, lora_config
from rlt_trainer.rl.completions import CompletionTables
from rlt_trainer.rl.engines import Completion, Engine, TeacherEngine
from rlt_trainer.rl.failures import Failures
from rlt_trainer.rl.generation import in_place_of_vllm
from rlt_trainer.rl.mismatch import Watch
from rlt_trainer.rl.problems import Problems
from rlt_trainer.rl.publishing import Versions
from rlt_trainer.rl.rewards import AnswerRewards, Rewards, ServerRewards
from rlt_trainer.rl.rollout import Rolled, Sampled, roll_out, sample_seed
from rlt_trainer.texts import Writer, named_format

__all__ = ["run"]

log = logging.getLogger(__name__)

REFERENCE: Final = "reference"  # folder in a checkpoint: the model that the KL penalty holds to
REWARD: Final = "rlt_reward"
_NO_TOKEN: Final = 0.0  # log-prob of the token that stands for a completion that there is none of


class Trainer(GRPOTrainer):
    """Looks at how far the engine's log-probs are from its own before it learns from them."""

    watch: Watch

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        if model.training and "sampling_per_token_logps" in inputs:
            mask_bt = inputs["completion_mask"].bool()
            if "tool_mask" in inputs:
                mask_bt &= inputs["tool_mask"].bool()
            deltas_bt = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]).abs()
            if seen := self.watch.saw(deltas_bt[mask_bt]):
                difference, warnings = seen
                self._metrics["train"]["sampling/sampling_logp_difference/p99"].append(difference.p99)
                for warning in warnings:
                    log.warning("the engine's log-probs differ from the trainer's: %s", warning)
        return super().compute_loss(model, inputs, *args, **options)


def run(config: RLConfig) -> Path:
    """Train; go on from the newest checkpoint where there is one.

    Returns:
        The folder of the finished model.

    Raises:
        RLTError: see `rlt_trainer.errors` and `rlt_client.errors`.
    """
    with start_blocking_portal() as portal:
        session = _Session(config, portal)
        try:
            return session.train()
        finally:
            session.close()


class _Session:
    """One run in one process."""

    def __init__(self, config: RLConfig, portal: BlockingPortal) -> None:
        self._config = config
        self._portal = portal
        format = named_format(config.texts.format, config.texts.formats)
        self._writer = Writer(load_codec(config.model), format)
        rows = read_rows(config.data, want=("question", "answer"), may=("system",))
        room = config.texts.max_tokens - config.rollout.max_tokens
        if room < 1:
            raise BadConfig("texts.max_tokens must leave room for a prompt beside rollout.max_tokens")
        self._problems = Problems(rows, self._writer, config.role, room)
        if self._problems.too_long:
            log.warning("%d problems have prompts of over %d tokens and are left out", self._problems.too_long, room)
        self._engine = portal.call(self._make_engine)
        self._rewards = portal.call(self._make_rewards)
        self._failures = Failures(config.reward.max_failed, config.reward.window)
        self._versions = Versions(config.rollout.weights, keep=config.rollout.keep)
        self._tables = CompletionTables(config.output / "completions", self._writer)
        self._revision = ""
        self._rolled: Rolled | None = None
        self._trainer = self._make_trainer()

    def train(self) -> Path:
        resume = self._resumed()
        self._trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        final = self._config.output / "model"
        self._save(final)
        return final

    def close(self) -> None:
        self._portal.call(self._engine.aclose)
        self._portal.call(self._rewards.aclose)

    async def _make_engine(self) -> Engine:
        config, student = self._config, self._writer.format.student
        close = self._writer.format.teacher.close if config.role is TextRole.teacher else student.after_answer.strip()
        return TeacherEngine(config.rollout, key=_key(config.rollout.key_env), stop=[close] if close else [])

    async def _make_rewards(self) -> Rewards:
        config = self._config
        if config.reward.source is RewardSource.answer:
            return AnswerRewards(config.reward.match, self._writer)
        return ServerRewards(
            config.reward,
            key=_key(config.reward.key_env),
            format=config.texts.format,
            temperature=config.rollout.temperature,
        )

    def _resumed(self) -> Path | None:
        found = checkpoints.newest(self._config.output)
        if found is not None and not self._config.checkpoints.resume:
            raise BadConfig(f"{self._config.output} holds {found.name}: name another output, or allow to resume")
        return found

    def _make_trainer(self) -> Trainer:
        config = self._config
        model = load_model(config.model)
        resume = self._resumed()
        if resume is not None and (resume / REFERENCE).is_dir():
            model.config._name_or_path = str(resume / REFERENCE)  # where TRL loads the reference from
        with in_place_of_vllm(self._publish):
            trainer = Trainer(
                model=model,
                reward_funcs=[self._worth],
                args=_arguments(config),
                train_dataset=self._problems.dataset,
                processing_class=self._writer.codec.tokenizer,
                peft_config=lora_config(config.model.lora),
                rollout_func=self._roll_out,
            )
        trainer.watch = Watch(config.mismatch, config.model.dtype)
        for callback in self._callbacks(trainer):
            trainer.add_callback(callback)
        return trainer

    def _callbacks(self, trainer: Trainer) -> Sequence[TrainerCallback]:
        moved = trainer.ref_model is not None and self._config.grpo.reference.sync_every > 0
        extras = [partial(self._save_reference, trainer)] if moved else []
        return [Sealing(self._config.checkpoints.keep, extras, lambda: {"revision": self._revision})]

    def _publish(self) -> None:
        """In every process: the weights of this step, and the engine sampling with them."""
        step = self._trainer.state.global_step
        state = self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)
        told: list[str | None] = [None]
        if self._trainer.accelerator.is_main_process:
            folder = self._versions.write(step, lambda path: self._write(path, state))
            told = [self._portal.call(partial(self._engine.publish, folder, lora=self._lora))]
            self._versions.prune()
        broadcast_object_list(told)
        self._revision = told[0] or ""

    @property
    def _lora(self) -> bool:
        return self._config.model.lora is not None

    def _write(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        dtype = getattr(torch, self._config.model.dtype)
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        kept, model.config.dtype = model.config.dtype, dtype
        try:
            model.save_pretrained(folder, state_dict=cast)
        finally:
            model.config.dtype = kept
        self._writer.codec.tokenizer.save_pretrained(folder)

    def _save(self, folder: Path) -> None:
        state = self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)
        if self._trainer.accelerator.is_main_process:
            Versions(folder.parent, keep=1).write_as(folder.name, lambda path: self._write(path, state))
        self._trainer.accelerator.wait_for_everyone()

    def _save_reference(self, trainer: Trainer, folder: Path) -> None:
        state = trainer.accelerator.get_state_dict(trainer.ref_model)
        if trainer.accelerator.is_main_process:
            trainer.accelerator.unwrap_model(trainer.ref_model).save_pretrained(folder / REFERENCE, state_dict=state)

    def _roll_out(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's rollout function, in every process for its own part of the batch."""
        step, first = trainer.state.global_step, trainer.accelerator.process_index * len(prompts)
        seeds = [sample_seed(self._config.seed, step, first + place) for place in range(len(prompts))]
        problems = [self._problems[key] for key in prompts]
        call = partial(roll_out, revision=self._revision, overlap=self._config.reward.overlap)
        rolled = self._rolled = self._portal.call(call, problems, seeds, self._engine, self._rewards)
        return self._columns(rolled.samples)

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
            REWARD: [each.rewarded.reward for each in samples],
        }
        return columns if all(map(all, masks)) else {**columns, "env_mask": masks}

    def _worth(self, log_metric: Any, **columns: Any) -> list[float | None]:
        """TRL's reward function: the rewards are there already; figures are told."""
        rolled = self._rolled
        assert rolled is not None
        log_metric("time/generating_s", rolled.generating_s)
        log_metric("time/waiting_for_rewards_s", rolled.waiting_s)
        rewarded = [each.rewarded for each in rolled.samples]
        for name in sorted({name for each in rewarded for name in each.components}):
            found = [each.components[name] for each in rewarded if name in each.components]
            log_metric(f"reward/{name}", sum(found) / len(found))
        everyone = gather_object([each.failure for each in rewarded])
        log_metric("reward/missing", float(self._failures.saw(everyone)))
        self._tables.saw(self._trainer.state.global_step, rolled.samples, every=self._config.logging.completions_every)
        rewards: list[float | None] = columns[REWARD]
        return rewards

    _worth.__name__ = "reward"


def _arguments(config: RLConfig) -> GRPOConfig:
    shared = shared_arguments(config, config.model, config.training, config.logging, config.checkpoints)
    if config.training.batch_size % (processes() * config.training.micro_batch_size):
        raise BadConfig("training.batch_size must be a multiple of the processes times micro_batch_size")
    if config.checkpoints.every % config.grpo.iterations:
        raise BadConfig("checkpoints.every must be a multiple of grpo.iterations: a run goes on with fresh completions")
    grpo, reference = config.grpo, config.grpo.reference
    moves = bool(reference.sync_every and grpo.beta)
    return GRPOConfig(
        **shared,
        steps_per_generation=shared["gradient_accumulation_steps"],
        num_generations=grpo.generations,
        num_iterations=grpo.iterations,
        max_completion_length=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        beta=grpo.beta,
        epsilon=grpo.epsilon,
        loss_type=grpo.loss,
        scale_rewards=grpo.scale,
        sync_ref_model=moves,
        ref_model_mixup_alpha=reference.mixup,
        ref_model_sync_steps=reference.sync_every or 1,
        use_vllm=True,
        vllm_mode="server",
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",  # the default sums over a sequence and masks long ones
        mask_truncated_completions=False,  # a truncated one must feel the −1 of its missing tag
        remove_unused_columns=False,
        log_completions=False,
    )


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise BadConfig(f"the environment variable {variable} holds no key")
    return key
