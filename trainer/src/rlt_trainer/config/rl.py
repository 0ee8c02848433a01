"""`rlt-trainer rl`: GRPO with the reward of a student, or with one for right answers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlt_trainer.config.base import Section, Stage
from rlt_trainer.config.evaluate import Match
from rlt_trainer.config.sections import Checkpoints, Data, Logging, Model, TextRole, Texts, Training

__all__ = ["GRPO", "Mismatch", "RLConfig", "Reference", "Reward", "RewardSource", "Rollout", "RolloutEngine", "Turns"]


class RolloutEngine(StrEnum):
    """What samples completions."""

    teacher = "teacher"
    """A teacher server: `POST /generate`, weights by `POST /policies`."""
    vllm = "vllm"
    """vLLM itself, on a private address, with its development endpoints (`VLLM_SERVER_DEV_MODE=1`)."""


class Rollout(Section):
    """Where completions come from, and how weights get there."""

    engine: RolloutEngine = Field(
        RolloutEngine.teacher, description="what samples: a teacher server, or vLLM without one before it"
    )
    url: str = Field("http://127.0.0.1:8001", description="of the engine")
    key_env: str | None = Field(None, description="environment variable that holds the key; scopes explain and admin")
    weights: Path = Field(
        description="folder that the engine sees at the same path, inside its allowed roots: each version is written "
        "there before it is published"
    )
    policy: str = Field("policy", description="name that versions are published under")
    keep: int = Field(2, ge=1, description="versions that stay in the folder")
    temperature: float = Field(0.7, gt=0, le=2, description="of sampling, and of the log-probs that are compared")
    max_tokens: int = Field(2048, ge=1, description="of a completion")
    concurrency: int = Field(256, ge=1, description="completions under way at once")
    together: int = Field(
        1,
        ge=1,
        le=1024,
        description="of a teacher server: completions asked for in one request. More makes fewer requests, which small "
        "models feel, but none of them is scored before the last of them has ended",
    )
    patience_s: float = Field(1800, gt=0, description="how long an engine that is away, or refuses, is waited for")
    deadline_s: float = Field(7200, gt=0, description="how long one request may take in all, with engines started anew")


class RewardSource(StrEnum):
    server = "server"
    """A reward server: what a student learns from the explanation."""
    answer = "answer"
    """The completion is a student's text, and its answer is compared with the right one."""


class Reward(Section):
    """What a completion is worth."""

    source: RewardSource = Field(
        RewardSource.server, description="a reward server scores explanations, or a student's answer is compared"
    )
    url: str = Field("http://127.0.0.1:8002", description="of the reward server")
    key_env: str | None = Field(
        None, description="environment variable that holds the key; scope reward, and with `turns` admin"
    )
    student: str | None = Field(None, description="of those that the server has; its default")
    spec: dict[str, Any] = Field(
        {"preset": "rlt"}, description="reward by preset, with coefficients such as `lambda` and `kl`"
    )
    match: Match = Field(Match.exact, description="of source `answer`: 0 or 1, or the share of parts that are right")
    overlap: bool = Field(True, description="send each completion as it ends, while others still generate")
    patience_s: float = Field(1800, gt=0, description="how long a server that is away, or refuses, is waited for")
    deadline_s: float = Field(7200, gt=0, description="how long one request may take in all, with servers started anew")
    max_failed: float = Field(
        0.02, ge=0, le=1, description="share of completions without a reward, over `window` steps, that ends the run"
    )
    window: int = Field(10, ge=1, description="steps")

    @field_validator("spec")
    @classmethod
    def _is_known(cls, spec: dict[str, Any]) -> dict[str, Any]:
        """As numbers and names, whatever a flag made of them."""
        from rlt_client.schemas.reward import SpecRequest  # here, so that --help does without

        return SpecRequest.model_validate(spec).model_dump(mode="json", by_alias=True, exclude_unset=True)


class Reference(Section):
    """The model that the KL penalty holds the policy to: the one the run begins with, moved towards the policy."""

    sync_every: int = Field(32, ge=0, description="steps; 0: never")
    mixup: float = Field(0.9, ge=0, le=1, description="share of the policy in the new reference")


class GRPO(Section):
    """Group-relative policy optimisation (arXiv 2402.03300), by TRL."""

    generations: int = Field(64, ge=2, description="completions of each problem; they are compared with one another")
    beta: float = Field(0.04, ge=0, description="weight of the KL penalty to the reference")
    epsilon: float = Field(0.2, gt=0, description="clip range of the ratio to the policy that sampled")
    iterations: int = Field(1, ge=1, description="updates on the same completions")
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = Field("grpo", description="TRL's name")
    scale: Literal["group", "batch", "none"] = Field("group", description="whose spread advantages are divided by")
    reference: Reference = Reference()


class Mismatch(Section):
    """How far the trainer's log-probs of the sampled tokens may be from the engine's, nats.

    Weights are proved by the policy's revision; this is a second net. Left out: by the model's dtype, 1e-3 at most in
    float32; in bfloat16 a warning at a mean of 0.1 or a 99th percentile of 0.7, the end of the run at a mean of 0.3.
    """

    least_tokens: int = Field(2000, ge=1, description="tokens that are looked at together")
    stop_max: float | None = Field(None, gt=0, description="largest difference that the run goes on with")
    stop_mean: float | None = Field(None, gt=0, description="largest mean difference that it goes on with")
    warn_mean: float | None = Field(None, gt=0, description="mean difference from which it warns")
    warn_p99: float | None = Field(None, gt=0, description="99th percentile from which it warns")


class Turns(Section):
    """Co-training: after every `steps` updates the student is taught by the newest teacher and rewards it from then on.

    Each turn has the teacher explain problems, distils a student from the base that `distill` names on the complete
    explanations, and publishes it to the reward server under `reward.student`. The students lie in
    `<output>/turns`, which the reward server must see at the same path, inside its `allowed_roots`.
    """

    steps: int = Field(ge=1, description="updates of a turn; a checkpoint is written at its end")
    traces: int = Field(1000, ge=1, description="explanations of a turn, one each of the first problems")
    distill: Path = Field(description="configuration of `rlt-trainer distill`; its data and output are set here")


class RLConfig(Stage):
    """GRPO: completions from the engine, rewards as each one ends, weights published before each step."""

    model: Model
    data: Data = Field(description="rows of question and answer")
    texts: Texts = Texts()
    role: TextRole = Field(TextRole.teacher, description="whose prompt is completed")
    rollout: Rollout
    reward: Reward = Reward()
    grpo: GRPO = GRPO()
    mismatch: Mismatch = Mismatch()
    turns: Turns | None = Field(None, description="exchange the student between turns; without it, it stays")
    training: Training
    logging: Logging = Logging()
    checkpoints: Checkpoints = Checkpoints(every=10)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.training.batch_size % self.grpo.generations:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is no multiple of grpo.generations "
                f"{self.grpo.generations}: groups are never divided between updates"
            )
        if self.model.lora is not None and self.grpo.reference.sync_every and self.grpo.beta:
            raise ValueError(
                "model.lora needs grpo.reference.sync_every = 0: the reference of an adapter is the model without it, "
                "which stays (TRL 1.16 cannot move it)"
            )
        if self.model.lora is not None and self.model.lora.dropout:
            raise ValueError(
                "model.lora.dropout must be 0 in reinforcement learning: the engine samples with the whole adapter"
            )
        if self.reward.source is RewardSource.server and self.role is TextRole.student:
            raise ValueError("role student writes answers, not explanations: want reward.source = answer")
        if self.reward.source is RewardSource.answer and self.role is TextRole.teacher:
            raise ValueError("role teacher is shown the answer: want reward.source = server")
        if self.turns is not None and self.reward.source is not RewardSource.server:
            raise ValueError("turns exchange the student of a reward server: want reward.source = server")
        if self.turns is not None and self.reward.student is None:
            raise ValueError("turns want reward.student: the name that each turn's student takes over")
        if self.turns is not None and self.turns.steps % self.grpo.iterations:
            raise ValueError("turns.steps must be a multiple of grpo.iterations: a turn begins with fresh completions")
        return self
