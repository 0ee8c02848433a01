"""What a run would do, told before it is done."""

from __future__ import annotations

from rlt_trainer.config import Stage

__all__ = ["plan"]


def plan(config: Stage) -> str:
    """The whole configuration, defaults included, as JSON."""
    return f"{config.model_dump_json(indent=2)}\n"
