"""Whether log-probs of a sampling can be the teacher's side of a reward's KL, and what there is in their place. Pure.

They can where they are those of the reward's teacher temperature with nothing cut off (arXiv 2506.08388; the reward
server refuses others as `teacher_logprobs_unusable`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.common import FieldError
from rlt_client.schemas.models import ModelList
from rlt_client.schemas.reward import KLEstimator, Preset, PresetList, SpecRequest

__all__ = ["RewardAbilities", "Sampling", "needed_changes", "refusal"]

TOLERANCE: Final = 1e-6  # as the reward server's: 0.7 that has been through a float32 is still 0.7


class Sampling(Protocol):
    """What the log-probs of samples depend on, beside the model."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RewardAbilities:
    """What the reward server can do with its models."""

    temperatures: Mapping[Preset, float | None]
    """Teacher temperature of each preset, None for those without KL; presets that it cannot give are left out."""
    hosted: bool
    """It hosts a teacher."""
    by_token: bool
    """… with the student's tokenizer, so that it can be compared with token by token."""

    @classmethod
    def of(cls, presets: PresetList, models: ModelList) -> Self:
        temperatures = {preset.name: preset.spec.teacher_temperature for preset in presets.presets}
        return cls(temperatures, models.teacher is not None, KLEstimator.exact in presets.kl)

    def teacher_temperature(self, spec: SpecRequest) -> float | None:
        """Of the reward that is asked for; None where it has no KL, or is not to be had."""
        default = self.temperatures.get(spec.preset)
        return default if default is None or spec.teacher_temperature is None else spec.teacher_temperature

    def hosts_teacher_for(self, preset: Preset) -> bool:
        return self.hosted and (self.by_token or preset is Preset.rlt_segments)


def needed_changes(sampling: Sampling, temperature: float) -> dict[str, float]:
    """What the sampling would have to be for its log-probs to be of use at this teacher temperature; empty if it is."""
    needed = {
        "temperature": (abs(sampling.temperature - temperature) > TOLERANCE, temperature),
        "top_p": (sampling.top_p != 1, 1),
        "top_k": (sampling.top_k not in (0, -1), 0),
    }
    return {name: value for name, (wrong, value) in needed.items() if wrong}


def refusal(preset: Preset, sampling: Sampling, needed: Mapping[str, float]) -> InvalidRequest:
    """What is wrong and every way out of it. The type is `sampling_unusable_for_kl`."""
    ways = ["sample with " + ", ".join(f"{name} {value:g}" for name, value in needed.items())]
    if list(needed) == ["temperature"] and sampling.temperature > 0:
        ways.append(f"set spec.teacher_temperature to {sampling.temperature:g}")
    ways += ["ask for a spec without KL such as `ss_only`", "start the reward server with --teacher"]
    detail = (
        f"the KL of `{preset}` cannot be taken from log-probs of this sampling, and the reward server hosts no teacher "
        f"that could compute others: {', or '.join(ways)}"
    )
    errors = [
        FieldError(pointer=f"/{name}", detail=f"is {getattr(sampling, name):g}, the KL needs {value:g}")
        for name, value in needed.items()
    ]
    return InvalidRequest(detail, type="sampling_unusable_for_kl", errors=errors)
