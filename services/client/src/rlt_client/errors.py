"""Every error of the platform, as one tree.

    RLTError
    ├── TransportError            the service was not reached, or broke off
    │   └── DeadlineExceeded      … within the caller's deadline
    ├── ProtocolError             it answered something that is not the protocol
    ├── ItemError                 one item of a batch could not be done; the others could
    └── APIError                  it refused: an RFC 9457 problem with a stable `type`
        ├── InvalidRequest        422 (and 400)  ├── NotFound         404
        ├── Unauthorized          401            ├── Conflict         409
        ├── Forbidden             403            ├── PayloadTooLarge  413
        ├── Overloaded            429            ├── Unavailable      503 (and 502)
        ├── Timeout               504            └── InternalError    500

The servers raise the `APIError` branch and the client turns their replies back into the same classes.
"""

from __future__ import annotations

from typing import ClassVar

from rlt_client.schemas.common import FieldError, Problem

__all__ = [
    "APIError",
    "Conflict",
    "DeadlineExceeded",
    "Forbidden",
    "InternalError",
    "InvalidRequest",
    "ItemError",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "ProtocolError",
    "RLTError",
    "Timeout",
    "TransportError",
    "Unauthorized",
    "Unavailable",
    "error_from_problem",
]


class RLTError(Exception):
    """Base of every error that this package raises on purpose."""


class TransportError(RLTError):
    """The service could not be reached, or the connection broke before a whole reply came."""


class DeadlineExceeded(TransportError):
    """No reply within the caller's deadline, retries included."""


class ProtocolError(RLTError):
    """The service answered with something that is not this protocol: another program, a proxy's page."""


class ItemError(RLTError):
    """One item of a batch could not be done. `problem.type` names the reason."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.type}: {problem.detail or problem.title}")
        self.problem = problem


class APIError(RLTError):
    """A refusal. `type` is the stable name of the reason; `detail` is for people; `errors` point into the request."""

    status: ClassVar[int] = 500
    default_type: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str | None = None,
        *,
        type: str | None = None,
        errors: list[FieldError] | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        self.type = type or self.default_type
        self.detail = detail
        self.errors = errors or []
        self.retry_after = retry_after
        self.request_id = request_id
        pointers = "".join(f"\n  {error.pointer}: {error.detail}" for error in self.errors)
        super().__init__(f"{self.type}: {detail or self.title}{pointers}")

    def problem(self) -> Problem:
        """The RFC 9457 body of this error."""
        return Problem(
            type=self.type,
            title=self.title,
            status=self.status,
            detail=self.detail,
            errors=self.errors or None,
            request_id=self.request_id,
        )


class InvalidRequest(APIError):
    status = 422
    default_type = "invalid_request"
    title = "The request is not valid"


class Unauthorized(APIError):
    status = 401
    default_type = "unauthorized"
    title = "A key is needed"


class Forbidden(APIError):
    status = 403
    default_type = "forbidden"
    title = "The key does not allow this"


class NotFound(APIError):
    status = 404
    default_type = "not_found"
    title = "Not found"


class Conflict(APIError):
    status = 409
    default_type = "conflict"
    title = "The state of the thing does not allow this"


class PayloadTooLarge(APIError):
    status = 413
    default_type = "payload_too_large"
    title = "The request is too large"


class Overloaded(APIError):
    status = 429
    default_type = "overloaded"
    title = "Too many requests"


class InternalError(APIError):
    pass


class Unavailable(APIError):
    status = 503
    default_type = "unavailable"
    title = "Not available now"


class Timeout(APIError):
    status = 504
    default_type = "timeout"
    title = "Not done in time"


_BY_STATUS: dict[int, type[APIError]] = {
    cls.status: cls
    for cls in (
        InvalidRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        PayloadTooLarge,
        Overloaded,
        InternalError,
        Unavailable,
        Timeout,
    )
}
_BY_STATUS[400] = InvalidRequest
_BY_STATUS[502] = Unavailable


def error_from_problem(problem: Problem, *, retry_after: float | None = None) -> APIError:
    """The exception for a problem reply. Unknown 4xx become `InvalidRequest`, unknown 5xx `InternalError`."""
    status = problem.status or 500
    cls = _BY_STATUS.get(status, InvalidRequest if 400 <= status < 500 else InternalError)
    return cls(
        problem.detail or problem.title,
        type=problem.type,
        errors=problem.errors,
        retry_after=retry_after,
        request_id=problem.request_id,
    )
