"""NeMo-Gym's resources server (nemo_gym/base_resources_server.py): verifiers, prime-rl, NeMo-Gym's own agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Body, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from rlt_client.integrations.outcomes import Outcome
from rlt_client.integrations.samples import UnreadableSample
from rlt_client.schemas.common import Problem, Scope
from rlt_client.schemas.reward import ResolvedSpec, TeacherTokens
from rlt_reward_server.compat.config import NemoGym
from rlt_reward_server.compat.judging import RETRYABLE, Judge, Reading, Sample
from rlt_reward_server.compat.nemo_metrics import AggregateMetrics, Rollouts, aggregate
from rlt_reward_server.compat.serving import Caller, Service, judge_of
from rlt_reward_server.registry import Selection
from rlt_reward_server.service import RewardService
from rlt_service.auth import requires
from rlt_service.callers import while_connected
from rlt_service.rates import spend
from rlt_service.routing import Router

__all__ = ["router"]

router = Router(prefix="/compat/nemo_gym", tags=["nemo_gym"], dependencies=[requires(Scope.reward)])
NemoJudge = Annotated[Judge[NemoGym], judge_of("nemo_gym")]
JsonObject = Annotated[dict[str, Any], Body()]


class CreateParams(BaseModel):
    input: str | list[dict[str, Any]] = Field(description="the prompt: text, or messages")


class Generated(BaseModel):
    output: list[dict[str, Any]] = Field(description="items of an OpenAI Responses object")


class Verify(BaseModel):
    """What is read of a request; all of it, and whatever else it holds, is echoed."""

    responses_create_params: CreateParams
    response: Generated


@router.post("/seed_session", name="nemo_gym_seed_session")
async def seed_session(_body: JsonObject, _judge: NemoJudge) -> dict[str, Any]:
    """There is no session: every `/verify` stands for itself."""
    return {}


@router.post("/verify", name="nemo_gym_verify")
async def verify(body: JsonObject, request: Request, judge: NemoJudge, service: Service, caller: Caller) -> Response:
    """The request as it came, with `reward`, its components and figures. A sample without a score has
    `_ng_failure_class`, and `reward` is `invalid_reward` or null."""
    spend(request, 1)
    return await while_connected(request, _verified(judge, service, body, caller.owner))


@router.post("/aggregate_metrics", name="nemo_gym_aggregate_metrics")
def aggregate_metrics(body: Rollouts) -> AggregateMetrics:
    """Mean, maximum, minimum, median and standard deviation of every figure, by task and of all. Thousands of rollouts
    take their time: in a thread."""
    return aggregate(body.verify_responses)


@router.get("/reverify_mode", name="nemo_gym_reverify_mode")
async def reverify_mode() -> str:
    return "stateless"


async def _verified(judge: Judge[NemoGym], service: RewardService, body: dict[str, Any], owner: str) -> Response:
    samples = judge.read(service.registry, [_reading(judge, _checked(body), body)])
    judged = await judge.judge(service, samples, owner=owner, patient=True)
    [outcome] = judged.outcomes
    found = _failed(judge, outcome) if outcome.failure is not None else _scored(outcome, judged.spec)
    return JSONResponse({**body, **judge.figures(outcome), **found})


def _checked(body: dict[str, Any]) -> Verify:
    try:
        return Verify.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()], body=body) from error


def _reading(judge: Judge[NemoGym], verify: Verify, body: Mapping[str, Any]) -> Reading:
    section = judge.section

    def read(selection: Selection) -> Sample:
        task = section.reader.read(None, row=body, messages=_messages(verify.responses_create_params.input))
        if section.kl == "sent":
            return Sample(task, None, _sent(section, verify.response.output))
        return Sample(task, judge.response(_text(section.output, verify.response.output), selection))

    return read


def _messages(prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Items that are no messages (reasoning, calls of tools) have no role."""
    return prompt if isinstance(prompt, str) else [item for item in prompt if "role" in item]


def _text(kind: str, output: Sequence[Mapping[str, Any]]) -> str:
    """All text of the items of one kind. An empty output is an empty text: nothing was generated.

    Raises:
        UnreadableSample: there are only items of another kind.
    """
    found = [item for item in output if item.get("type") == kind]
    if output and not found:
        kinds = ", ".join(sorted({str(item.get("type"))[:40] for item in output}))
        raise UnreadableSample(f"the output has no item of type {kind}, but {kinds}")
    return "".join(_text_of(item.get("summary" if kind == "reasoning" else "content")) for item in found)


def _text_of(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def _sent(section: NemoGym, output: Sequence[Mapping[str, Any]]) -> TeacherTokens:
    """Ids and log-probs of the one generation, which stand in the last item that it gave.

    Raises:
        UnreadableSample: there is none, or more than one.
        ValidationError: they are not numbers.
    """
    found = [item for item in output if item.get("generation_token_ids") is not None]
    if len(found) != 1:
        raise UnreadableSample(f"{len(found)} items of the output have generation_token_ids: one is needed")
    assert section.temperature is not None  # the section asks for it
    return TeacherTokens(
        token_ids=found[0]["generation_token_ids"],
        logprobs=found[0].get("generation_log_probs") or [],
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
    )


def _scored(outcome: Outcome, spec: ResolvedSpec | None) -> dict[str, Any]:
    assert spec is not None  # a score came with it
    return {"reward": outcome.reward, "reward_components": _components(outcome, spec)}


def _components(outcome: Outcome, spec: ResolvedSpec) -> dict[str, float]:
    """Addends of the reward; one where it is no sum of its components."""
    assert outcome.reward is not None
    r_ss, r_kl = outcome.component("r_ss"), outcome.component("r_kl")
    if spec.mapping is not None or (r_ss is None and r_kl is None):
        return {"reward": outcome.reward}
    terms = {"r_ss": r_ss, "r_kl": None if r_kl is None else -(spec.lambda_ or 0.0) * r_kl}
    return {name: value for name, value in terms.items() if value is not None} | {
        "format": outcome.component("format") or 0.0
    }


def _failed(judge: Judge[NemoGym], outcome: Outcome) -> dict[str, Any]:
    """NeMo-Gym keeps a row with a failure class out of the results, and tries it again unless it is terminal."""
    failure = outcome.failure
    assert failure is not None
    return {"reward": judge.section.invalid_reward, **_failure(failure)}


def _failure(failure: Problem) -> dict[str, Any]:
    told = f"{failure.type}: {failure.detail or failure.title}"
    if failure.type in RETRYABLE:
        return {"_ng_failure_class": "judge_failed", "_ng_failure_judge_error": told}
    return {"_ng_failure_class": failure.type, "_ng_failure_judge_error": told, "_ng_failure_terminal": True}
