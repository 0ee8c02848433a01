"""What a training run logged, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from rlt_trainer import checkpoints

__all__ = ["COLUMNS", "read"]

COLUMNS: Final = {
    "reward": "reward",
    "r_SS": "reward/r_ss",
    "r_KL": "reward/r_kl",
    "KL mean": "reward/kl_mean",
    "KL max": "reward/kl_max",
    "length": "completions/mean_length",
    "generating s": "time/generating_s",
    "waiting s": "time/waiting_for_rewards_s",
    "step s": "step_time",
}


def read(run: Path) -> list[dict[str, float]]:
    """One row a step, by `COLUMNS`, out of the newest checkpoint's history; empty where there is no checkpoint."""
    newest = checkpoints.newest(run)
    if newest is None:
        return []
    history = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [_row(entry) for entry in history if "reward" in entry]


def _row(entry: dict[str, float]) -> dict[str, float]:
    found = {ours: round(entry[theirs], 4) for ours, theirs in COLUMNS.items() if theirs in entry}
    return {"step": entry["step"], **found}
