"""The tiny models, loaded once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from rlt_trainer.tiny import ensure_base, ensure_warmup
from rlt_trainer.tiny.model import load_model


@pytest.fixture(scope="session")
def tiny_base() -> Path:
    return ensure_base()


@pytest.fixture(scope="session")
def tiny_warmup() -> Path:
    """Made in about 40 s the first time on a machine, then found in the user's cache."""
    return ensure_warmup()


@pytest.fixture(scope="session")
def base_model(tiny_base: Path) -> LlamaForCausalLM:
    return load_model(tiny_base)
