"""An ablation of the paper: −λ · r_kl + format."""

from __future__ import annotations

from rlt_client.schemas.reward import Preset, ResolvedSpec, SpecRequest
from rlt_reward_server.reward.base import Evidence, Parts, RewardPreset, format_term, kl_term, resolved

__all__ = ["KLOnly"]


class KLOnly(RewardPreset):
    preset = Preset.kl_only
    description = "How natural the student finds the explanation, whatever it learns from it."
    uses_ss = False
    uses_kl = True

    def resolve(self, request: SpecRequest) -> ResolvedSpec:
        return resolved(request, ss=False, kl=True)

    def compute(self, evidence: Evidence, spec: ResolvedSpec) -> Parts:
        kl, format = kl_term(evidence, spec), format_term(evidence, spec)
        assert spec.lambda_ is not None
        return Parts(-spec.lambda_ * kl.r_kl + format, format, kl=kl)
