"""Replies of this server's own routes; those of `/reward` are in `rlt_client.schemas.reward`."""

from __future__ import annotations

from pydantic import Field

from rlt_client.schemas.common import ModelRef, Reply
from rlt_client.schemas.reward import KLEstimator, Preset, ResolvedSpec

__all__ = ["FormatInfo", "FormatList", "ModelInfo", "ModelList", "PresetInfo", "PresetList"]


class ModelInfo(ModelRef):
    max_tokens: int | None = Field(description="longest text that the model takes; null: no limit")
    vocab_size: int = Field(description="tokens of its tokenizer")
    dtype: str
    device: str


class ModelList(Reply):
    student: ModelInfo
    teacher: ModelInfo | None = Field(description="the hosted teacher; null: items must bring the teacher's log-probs")


class FormatInfo(Reply):
    name: str
    version: str
    hash: str
    available: bool
    reason: str | None = Field(default=None, description="why the models cannot take it")


class FormatList(Reply):
    default: str
    formats: list[FormatInfo]


class PresetInfo(Reply):
    name: Preset
    description: str
    needs_teacher: bool = Field(description="needs the teacher's log-probs: sent, or of a hosted teacher")
    spec: ResolvedSpec = Field(description="its coefficients where a request gives none")


class PresetList(Reply):
    default: Preset
    presets: list[PresetInfo]
    kl: list[KLEstimator] = Field(description="estimators that this server computes")
