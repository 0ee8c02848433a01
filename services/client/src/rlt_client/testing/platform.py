"""A platform over HTTP that answers from functions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from rlt_client.errors import APIError, InvalidRequest, NotFound
from rlt_client.formats import Format, shipped_formats
from rlt_client.schemas.common import FieldError, ModelRef
from rlt_client.schemas.explain import (
    ExplainBatchRequest,
    ExplainBatchResponse,
    ExplainRequest,
    ExplainResponse,
)
from rlt_client.schemas.reward import RewardItem, RewardRequest, RewardResponse, Score, ScoreUsage
from rlt_client.testing.explanations import ENGINE, NO_TIME, FakeTeacher
from rlt_client.testing.scores import hashed_reward, make_score, of_spec, resolved

__all__ = ["FakePlatform"]


class FakePlatform:
    """`POST /reward`, `POST /explain` (streamed too) and `POST /explain/batch` without models.

    Args:
        reward: the reward of an item; an exception that it raises becomes the item's error (its message the type).
        explain: the text of sample `index` of a request; an `APIError` that it raises is the problem's.
        refuse: called with each request before anything else; what it returns is raised (429, 503, …).
    """

    def __init__(
        self,
        *,
        reward: Callable[[RewardItem], float] = hashed_reward,
        explain: Callable[[ExplainRequest, int], str] | None = None,
        refuse: Callable[[httpx.Request], APIError | None] | None = None,
        format: Format | None = None,
    ) -> None:
        self._reward = reward
        self._refuse = refuse or (lambda _: None)
        self._format = format or shipped_formats()["stratos"]
        self._teacher = FakeTeacher(explain or _explanation, self._score, self._format)
        self.requests: list[RewardRequest | ExplainRequest | ExplainBatchRequest] = []
        """What was asked, in order of arrival."""

    def transport(self) -> httpx.AsyncBaseTransport:
        """In place of the network: `AsyncRewardClient("http://fake", transport=fake.transport())`."""
        return httpx.MockTransport(self.handle)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """On a free port of the loopback interface; gives its base URL."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def handle(self, request: httpx.Request) -> httpx.Response:
        routes: dict[str, tuple[type[BaseModel], Callable[[Any], BaseModel | httpx.Response]]] = {
            "/reward": (RewardRequest, self.score),
            "/explain": (ExplainRequest, self._explain),
            "/explain/batch": (ExplainBatchRequest, self.explain_batch),
        }
        try:
            if refusal := self._refuse(request):
                raise refusal
            if request.url.path in ("/livez", "/readyz"):
                return httpx.Response(200, json={"status": "ok"})
            if request.url.path not in routes:
                raise NotFound(f"no {request.url.path} here")
            schema, answer = routes[request.url.path]
            reply = answer(_parsed(schema, request.content))
            return reply if isinstance(reply, httpx.Response) else _json(200, reply)
        except APIError as error:
            return _refused(error)

    def score(self, request: RewardRequest) -> RewardResponse:
        self.requests.append(request)
        spec = resolved(request.spec)
        items = [of_spec(self._score(index, item), spec) for index, item in enumerate(request.items)]
        return RewardResponse(
            items=items,
            student=ModelRef(name="fake-student", revision="sha256:0"),
            dtype="float32",
            engine=ENGINE,
            teacher=None,
            format=self._format.ref,
            spec=spec,
            usage=ScoreUsage(
                items=len(items), scored=sum(s.reward is not None for s in items), student_tokens=0, teacher_tokens=0
            ),
            timing=NO_TIME,
        )

    def _score(self, index: int, item: RewardItem) -> Score:
        try:
            return make_score(self._reward(item), index=index, id=item.id)
        except Exception as error:  # whatever the test's function raises is the item's error
            return make_score(None, index=index, id=item.id, error=str(error) or type(error).__name__)

    def explain(self, request: ExplainRequest) -> ExplainResponse:
        self.requests.append(request)
        return self._teacher.explain(request)

    def explain_batch(self, request: ExplainBatchRequest) -> ExplainBatchResponse:
        self.requests.append(request)
        return self._teacher.batch(request)

    def _explain(self, request: ExplainRequest) -> ExplainResponse | httpx.Response:
        if not request.stream:
            return self.explain(request)
        self.requests.append(request)
        lines = [
            f"event: {event.event}\ndata: {event.model_dump_json(by_alias=True)}\n\n"
            for event in self._teacher.events(request)
        ]
        return httpx.Response(200, text="".join(lines), headers={"content-type": "text/event-stream"})


def _explanation(request: ExplainRequest, index: int) -> str:
    return f"{request.answer} follows from {request.question} ({index})"


def _parsed(schema: type[BaseModel], body: bytes) -> BaseModel:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        fields = [FieldError(pointer="/" + "/".join(map(str, e["loc"])), detail=e["msg"]) for e in error.errors()]
        raise InvalidRequest(errors=fields) from error


def _json(status: int, body: BaseModel, **headers: str) -> httpx.Response:
    content = body.model_dump_json(by_alias=True)
    return httpx.Response(status, content=content, headers={"content-type": "application/json", **headers})


def _refused(error: APIError) -> httpx.Response:
    headers = {} if error.retry_after is None else {"retry-after": f"{error.retry_after:g}"}
    return _json(error.status, error.problem(), **headers)


def _handler(platform: FakePlatform) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            response = platform.handle(httpx.Request(self.command, f"http://fake{self.path}", content=body))
            self.send_response(response.status_code)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.content)

        do_GET = do_POST = _answer  # noqa: N815 names set by http.server

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler
