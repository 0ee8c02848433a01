"""Finished models as folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, Trainer, TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from rlt_trainer.config.sections import LoRA, Model
from rlt_trainer.models import load_model, lora_config
from rlt_trainer.saving import save_trained


class Zero3:
    """What transformers asks of DeepSpeed's configuration when it loads a model."""

    def is_zero3(self) -> bool:
        return True


@pytest.fixture
def zero3() -> Iterator[Zero3]:
    yield Zero3()
    unset_hf_deepspeed_config()


@pytest.mark.parametrize("sharded", [True, False], ids=["zero3", "whole"])
def test_an_adapter_is_merged_by_one_process_though_models_are_divided_among_all(
    sharded: bool, zero3: Zero3, tiny_base: Path, tmp_path: Path
) -> None:
    """ZeRO-3 loads a model in all processes together; here one of them loads it, while the others wait for its end."""
    model = Model(name=str(tiny_base), dtype="float32", lora=LoRA(rank=2, alpha=4))
    trained = get_peft_model(load_model(model), lora_config(model.lora))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = Trainer(trained, arguments, processing_class=AutoTokenizer.from_pretrained(tiny_base))
    trainer.model_wrapped = Accelerator(cpu=True).prepare_model(trained)
    if sharded:
        arguments.hf_deepspeed_config = zero3
        set_hf_deepspeed_config(zero3)

    folder = save_trained(trainer, model, tmp_path)

    assert is_deepspeed_zero3_enabled() == sharded  # for what comes after it
    merged, base = load_file(folder / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert all(merged[name].equal(base[name]) for name in base)  # an adapter begins as nothing
