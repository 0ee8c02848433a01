"""From a chat request to an `/explain` request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from rlt_client.errors import APIError, InvalidRequest
from rlt_client.schemas.common import FieldError
from rlt_client.schemas.explain import ExplainRequest, Incomplete, Keep
from rlt_service.pointers import at, pointer
from rlt_teacher_server.openai.requests import ALIAS, ChatMessage, ChatRequest, ExplainExtras

__all__ = ["Asked", "read"]

SHAPE: Final = (
    "`messages` are the question (role user), then its ground-truth solution (role assistant); or the question alone, "
    "with the solution in `answer`"
)

NEUTRAL: Final[Mapping[str, Sequence[Any]]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "stop": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's and its relatives'
    "allowed_token_ids": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
"""Parameters that would change the result and are not done, each with the values at which it does nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat request, read."""

    explain: ExplainRequest
    logprobs: bool
    include_usage: bool
    return_tokens: bool
    """Whether the caller asked for them; log-probs need them too."""
    places: Mapping[str, str]
    """Where the chat request has what an `/explain` request calls otherwise: JSON pointers."""

    @contextmanager
    def told(self) -> Iterator[None]:
        """Errors of `/explain` point into the chat request."""
        try:
            yield
        except APIError as error:
            error.errors = self.placed(error.errors)
            raise

    def placed(self, errors: Sequence[FieldError]) -> list[FieldError]:
        return [FieldError(pointer=self._place(each.pointer), detail=each.detail) for each in errors]

    def _place(self, place: str) -> str:
        _, _, path = place.partition("/")
        name, slash, rest = path.partition("/")
        return self.places.get(name, f"/{name}" if name else "") + slash + rest


def read(body: ChatRequest) -> Asked:
    """Raises:
    InvalidRequest: unsupported_parameter, unsupported_message, and what `/explain` refuses by itself.
    """
    _refuse_unsupported(body)
    extras = body.rlt or ExplainExtras()
    question, answer, places = _problem(body)
    budget = _budget(body)
    given = {
        "policy": None if body.model == ALIAS else body.model,
        "n": body.n,
        "max_tokens": budget,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "stream": body.stream,
        **extras.model_dump(by_alias=True, exclude_unset=True),
    }
    values = {name: value for name, value in given.items() if value is not None}
    if body.logprobs:
        values["return_tokens"] = True
    return Asked(
        explain=_explain_request({**values, "question": question, "answer": answer}, places),
        logprobs=bool(body.logprobs),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        return_tokens=extras.return_tokens,
        places=places,
    )


def _refuse_unsupported(body: ChatRequest) -> None:
    for name, value in body.others.items():
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            detail = f"`{name}` would change the result and is not supported: leave it out"
            raise _unsupported(f"/{name}", detail)
    if body.stream and body.rlt is not None:
        _refuse_taking_back(body.rlt)


def _refuse_taking_back(extras: ExplainExtras) -> None:
    """What was streamed cannot be taken back in this protocol. `/explain` can say so, and streams all of these."""
    chosen = {
        "keep": extras.keep is not Keep.all,
        "min_reward": extras.min_reward is not None,
        "incomplete": extras.incomplete is not Incomplete.keep,
        "drop_leaks": extras.drop_leaks,
    }
    for name, asked in chosen.items():
        if asked:
            detail = f"`rlt.{name}` and `stream` exclude each other: what was streamed cannot be taken back"
            raise _unsupported(f"/rlt/{name}", detail)


def _problem(body: ChatRequest) -> tuple[str, str, dict[str, str]]:
    """Question, answer, and where things are in the request."""
    spoken = [place for place, message in enumerate(body.messages) if not _is_empty_system(message, place)]
    roles = [body.messages[place].role for place in spoken]
    wanted = ["user"] if body.answer is not None else ["user", "assistant"]
    if roles != wanted:
        told = "the solution is given twice" if roles == ["user", "assistant"] else f"roles are {', '.join(roles)}"
        raise at("/messages", InvalidRequest(f"{told}: {SHAPE}", type="unsupported_message"))
    texts = [_text(body.messages[place], place) for place in spoken]
    last = "/answer" if body.answer is not None else f"/messages/{spoken[-1]}/content"
    places = {"policy": "/model", "question": f"/messages/{spoken[0]}/content", "answer": last}
    places |= {name: f"/rlt/{name}" for name in ExplainExtras.model_fields}
    if body.max_tokens is None:
        places["max_tokens"] = "/max_completion_tokens"
    return texts[0], texts[-1] if body.answer is None else body.answer, places


def _is_empty_system(message: ChatMessage, place: int) -> bool:
    if message.role not in ("system", "developer"):
        return False
    if _text(message, place).strip():
        detail = "the system message belongs to the prompt format (`rlt.format` chooses one): leave it out"
        raise at(f"/messages/{place}", InvalidRequest(detail, type="unsupported_message"))
    return True


def _text(message: ChatMessage, place: int) -> str:
    if isinstance(message.content, str):
        return message.content
    for number, part in enumerate(message.content or ()):
        if part.type != "text" or part.text is None:
            where = f"/messages/{place}/content/{number}"
            raise at(where, InvalidRequest("only text is understood", type="unsupported_message"))
    return "".join(part.text or "" for part in message.content or ())


def _budget(body: ChatRequest) -> int | None:
    both = {each for each in (body.max_tokens, body.max_completion_tokens) if each is not None}
    if len(both) > 1:
        detail = "`max_tokens` and `max_completion_tokens` are two names of one thing, with different values here"
        raise at("/max_tokens", InvalidRequest(detail))
    return both.pop() if both else None


def _explain_request(values: Mapping[str, Any], places: Mapping[str, str]) -> ExplainRequest:
    try:
        return ExplainRequest.model_validate(values)
    except ValidationError as error:
        found = [_field_error(each["loc"], each["msg"], places) for each in error.errors(include_url=False)]
        raise InvalidRequest(errors=found) from error


def _field_error(path: Sequence[str | int], message: str, places: Mapping[str, str]) -> FieldError:
    where = places.get(str(path[0]), pointer(path[:1])) if path else ""
    return FieldError(pointer=where, detail=message.removeprefix("Value error, "))


def _unsupported(place: str, detail: str) -> InvalidRequest:
    return at(place, InvalidRequest(detail, type="unsupported_parameter"))
