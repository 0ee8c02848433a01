"""TRL's GRPOTrainer on its own: transformers generates in its process, and every completion is worth the same.

    python -m trainer_bench.plain …

It takes the flags of `rlt-trainer rl`, so that model, prompts and batch are the same; completions end at the same tag.
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from rlt_trainer.arguments import shared_arguments
from rlt_trainer.config import RLConfig, load
from rlt_trainer.data import read_rows
from rlt_trainer.models import load_codec, load_model
from rlt_trainer.texts import Writer, named_format
from trainer_bench.runs import Ran, tell


def main() -> None:
    config, _ = load(RLConfig, sys.argv[1:], prog="trainer_bench.plain")
    codec = load_codec(config.model)
    writer = Writer(codec, named_format(config.texts.format, config.texts.formats))
    rows = read_rows(config.data, want=("question", "answer"))
    prompts = [codec.decode(writer.prompt(config.role, row["question"], row["answer"])) for row in rows]
    tokenizer: Any = codec.tokenizer
    tokenizer.eos_token = writer.format.teacher.close
    trainer = GRPOTrainer(
        model=load_model(config.model),
        reward_funcs=[_constant],
        args=_arguments(config),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.train()
    tell(Ran.read(config.output / f"checkpoint-{config.training.steps}"))


def _constant(completions: list[Any], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)


def _arguments(config: RLConfig) -> GRPOConfig:
    shared = shared_arguments(config, config.model, config.training, config.logging, config.checkpoints)
    return GRPOConfig(
        **shared,
        steps_per_generation=shared["gradient_accumulation_steps"],
        num_generations=config.grpo.generations,
        max_completion_length=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        beta=config.grpo.beta,
        epsilon=config.grpo.epsilon,
        loss_type=config.grpo.loss,
        scale_rewards=config.grpo.scale,
        use_vllm=False,
    )


if __name__ == "__main__":
    main()
