"""TRL's GRPOTrainer with the settings of this package."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, Final

from torch.utils.data import Sampler
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from rlt_trainer.arguments import BARRIER_S, shared_arguments, without_cpu_number
from rlt_trainer.config.rl import RLConfig
from rlt_trainer.errors import BadConfig
from rlt_trainer.rl.mismatch import Watch

__all__ = ["Trainer", "grpo_arguments"]

log = logging.getLogger(__name__)

UNTRUE: Final = (
    "completions/clipped_ratio",
    "completions/mean_terminated_length",
    "completions/min_terminated_length",
    "completions/max_terminated_length",
)
"""Figures of TRL 1.16 that take a completion for cut off unless it ends with an end of text; ours end with a tag."""


class Trainer(GRPOTrainer):
    """Looks at how far the engine's log-probs are from its own before it learns from them, and draws problems so that a
    run that goes on draws the same."""

    def __init__(self, *, watch: Watch, **options: Any) -> None:
        super().__init__(**options)
        self._watch = watch

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return _ByEpoch(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        mask_bt = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            mask_bt &= inputs["tool_mask"].bool()
        deltas_bt = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]).abs()
        if seen := self._watch.saw(deltas_bt[mask_bt]):
            difference, warnings = seen
            self._metrics["train"]["sampling/sampling_logp_difference/p99"].append(difference.p99)
            for warning in warnings:
                log.warning("the engine's log-probs differ from the trainer's: %s", warning)
        return super().compute_loss(model, inputs, *args, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name in UNTRUE:
            self._metrics["train"].pop(name, None)
        super().log(logs, start_time)


class _ByEpoch(Sampler[int]):
    """TRL's sampler in an order that follows from seed and epoch; its own generator is where earlier epochs left it,
    which a run that goes on in a later epoch cannot know."""

    def __init__(self, sampler: Any, epoch: Callable[[], int]) -> None:
        self._sampler = sampler
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator.manual_seed(self._sampler.seed + self._epoch())
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


def grpo_arguments(config: RLConfig) -> GRPOConfig:
    """Raises `BadConfig` for a batch that does not divide, or checkpoints between two uses of the same completions."""
    shared = shared_arguments(config, config.model, config.training, config.logging, config.checkpoints)
    if config.checkpoints.every % config.grpo.iterations:
        raise BadConfig("checkpoints.every must be a multiple of grpo.iterations: a run goes on with fresh completions")
    try:
        return without_cpu_number(GRPOConfig(**shared | _own(config, shared["gradient_accumulation_steps"])))
    except (ValueError, ImportError) as error:  # such as bfloat16 on a device that has none
        raise BadConfig(f"training: {error}") from error


def _own(config: RLConfig, accumulation: int) -> dict[str, Any]:
    """What GRPOConfig takes beside the arguments of every trainer, and in place of some."""
    grpo, reference = config.grpo, config.grpo.reference
    return {
        "model_init_kwargs": {"revision": config.model.revision} if config.model.revision else None,  # the reference's
        "steps_per_generation": accumulation,
        "num_generations": grpo.generations,
        "num_iterations": grpo.iterations,
        "max_completion_length": config.rollout.max_tokens,
        "temperature": config.rollout.temperature,
        "beta": grpo.beta,
        "use_bias_correction_kl": False,  # as the paper's authors trained; TRL's default has another gradient
        "epsilon": grpo.epsilon,
        "loss_type": grpo.loss,
        "scale_rewards": grpo.scale,
        "sync_ref_model": reference.sync_every > 0 and grpo.beta > 0,
        "ref_model_mixup_alpha": reference.mixup,
        "ref_model_sync_steps": reference.sync_every or 1,
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",  # the default sums over a sequence and masks long ones
        "mask_truncated_completions": False,  # a truncated one must feel the −1 of its missing tag
        "remove_unused_columns": False,
        "log_completions": False,
        # one process may wait so long for a server, and the others for it
        "ddp_timeout": BARRIER_S + math.ceil(config.rollout.deadline_s + config.reward.deadline_s),
    }
