"""What was sampled in a step, in the words of TRL: its columns, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rlt_trainer.rl.engines import Completion
from rlt_trainer.rl.rollout import Rolled, Sampled

__all__ = ["columns", "figures_of"]

_NO_TOKEN: Final = 0.0  # log-prob of the token that stands for a completion that there is none of


def columns(samples: Sequence[Sampled], eos_token_id: int | None) -> dict[str, list[Any]]:
    """What was sampled, as TRL wants it. What has no reward is not learned from."""
    eos = eos_token_id or 0
    ids, logprobs, masks = [], [], []
    for each in samples:
        made = each.completion if isinstance(each.completion, Completion) else None
        tokens = list(made.token_ids) if made and made.token_ids else [eos]
        ids.append(tokens)
        logprobs.append(list(made.logprobs) if made and made.token_ids else [_NO_TOKEN])
        masks.append([int(each.rewarded.reward is not None)] * len(tokens))
    told: dict[str, list[Any]] = {
        "prompt_ids": [list(each.problem.prompt_ids) for each in samples],
        "completion_ids": ids,
        "logprobs": logprobs,
    }
    return told if all(map(all, masks)) else {**told, "env_mask": masks}


def figures_of(rolled: Rolled) -> dict[str, float]:
    """Where the time went, how many were cut off, and the mean of each component of the rewards."""
    figures = {
        "time/generating_s": rolled.generating_s,
        "time/waiting_for_rewards_s": rolled.waiting_s,
        "completions/cut_off": sum(map(_cut_off, rolled.samples)) / len(rolled.samples),
    }
    components = [each.rewarded.components for each in rolled.samples]
    for name in {name for each in components for name in each}:
        found = [each[name] for each in components if name in each]
        figures[f"reward/{name}"] = sum(found) / len(found)
    return figures


def _cut_off(sample: Sampled) -> bool:
    return isinstance(sample.completion, Completion) and sample.completion.finish_reason == "length"
