"""Who calls, and whether they may.

Every route declares one scope, as a dependency:

    router = Router(dependencies=[requires(Scope.reward)])

    @router.get("/models")
    async def models(caller: Annotated[Principal, requires(Scope.reward)]) -> …

The key comes as `Authorization: Bearer rlt_…` (or `XRL-Authorization`, ROLL's name for it), or, for keys marked
`path`, as the path parameter `{path_key}`. The scope `admin` implies all. Without any keys a server answers only its
own machine: callers are then "local", with every scope.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rlt_client.errors import Forbidden, Unauthorized, Unavailable
from rlt_client.schemas.common import Scope
from rlt_service.key_files import KeyFiles
from rlt_service.keys import KeyStore, hash_token
from rlt_service.rates import NO_RATES, Rates
from rlt_service.settings import ServerSettings

__all__ = [
    "LOCAL",
    "PUBLIC_PATHS",
    "Authenticator",
    "Principal",
    "authenticate",
    "declared_scopes",
    "requires",
    "still_allowed",
    "undeclared_routes",
]

PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/version", "/openapi.json"})
"""Paths that need no key."""

MOST_DIGITS = 20  # of an id: what a signed 64-bit number has

_HEADERS = ("authorization", "xrl-authorization")
"""The second is sent by ROLL, and by nobody else."""

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""What proxies add to say whom they ask for."""

_BEARER = HTTPBearer(auto_error=False, description="A key made by `rlt keys create`")


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one request. `key_id` is None for callers without a key."""

    owner: str
    scopes: frozenset[Scope]
    key_id: str | None = None
    rates: Rates = NO_RATES

    @property
    def counted_as(self) -> str:
        """Whose requests count together: those of one key; callers without one are all the same."""
        return self.key_id or self.owner

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.admin in self.scopes

    def demand(self, scope: Scope) -> None:
        """Raises `Forbidden` (missing_scope)."""
        if not self.allows(scope):
            raise Forbidden(f"this needs a key with the scope `{scope}`", type="missing_scope")


LOCAL = Principal("local", frozenset(Scope))
"""The caller of a server without keys."""


class Authenticator:
    """Finds out who calls.

    `anonymous` serves callers without a key; `loopback_only` then only those on this machine. `store` None means that
    there are no keys at all: a token that is sent anyway cannot be wrong, and is not looked at.
    """

    def __init__(
        self, store: KeyStore | None, *, anonymous: bool, loopback_only: bool, rates: Rates = NO_RATES
    ) -> None:
        self.store = store
        self.rates = rates
        self.anonymous = anonymous
        self.loopback_only = loopback_only

    @classmethod
    def of(cls, settings: ServerSettings, store: KeyStore | None = None) -> Authenticator:
        """`store` replaces the keys of the settings; with a store, callers need a key unless `allow_anonymous`."""
        if store is None:
            files = KeyFiles.of(settings)
            store = files if len(files) or files.watches else None
        open_to_all, rates = settings.allow_anonymous, Rates.of_settings(settings)
        return cls(store, anonymous=open_to_all or store is None, loopback_only=not open_to_all, rates=rates)

    async def principal(self, request: Request) -> Principal:
        """Raises `Unauthorized` without a key or with a wrong one."""
        token, in_path = _token(request)
        if self.store is None or (token is None and self.anonymous):
            return self._anonymous(request)
        if token is None:
            raise Unauthorized("send a key: `Authorization: Bearer rlt_…`")
        key = await self.store.find(hash_token(token))
        if key is None or (in_path and not key.in_path):
            raise Unauthorized("no such key", type="unknown_key")
        return Principal(key.owner, key.scopes, key.id, Rates.of(key, self.rates))

    def _anonymous(self, request: Request) -> Principal:
        if self.loopback_only and not _is_local(request):
            raise Forbidden("this server has no keys and answers only its own machine", type="local_only")
        return replace(LOCAL, rates=self.rates)


async def authenticate(request: Request) -> Principal:
    """The caller of this request; looked up once, then kept in `request.state` and in the log context."""
    known = getattr(request.state, "principal", None)
    if isinstance(known, Principal):
        return known
    authenticator: Authenticator = request.app.state.auth
    principal = await authenticator.principal(request)
    request.state.principal = principal
    structlog.contextvars.bind_contextvars(owner=principal.owner, **_ids(request))
    return principal


async def still_allowed(request: Request, scope: Scope) -> bool:
    """Whether a caller who was let in would be let in again: for replies without an end of their own."""
    authenticator: Authenticator = request.app.state.auth
    try:
        return (await authenticator.principal(request)).allows(scope)
    except Unavailable:  # the keys cannot be looked up now: nothing was taken back
        return True
    except (Unauthorized, Forbidden):
        return False


@dataclass(frozen=True, slots=True)
class _Requirement:
    scope: Scope

    async def __call__(
        self, request: Request, _bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> Principal:
        principal = await authenticate(request)
        principal.demand(self.scope)
        return principal


def _ids(request: Request) -> dict[str, int]:
    """What the path names by number, for log lines: `build_id`, `version_id`, …"""
    named = ((name, str(value)) for name, value in request.path_params.items() if name.endswith("_id"))
    return {name: int(value) for name, value in named if value.isdecimal() and len(value) < MOST_DIGITS}


def requires(scope: Scope) -> Any:
    """A dependency that demands `scope` and gives the `Principal`. `Any`, so that it may also stand as a default."""
    return Security(_Requirement(scope), scopes=[scope.value])


def undeclared_routes(app: FastAPI) -> list[str]:
    """`METHOD /path` of every route that declares no scope and is not public."""
    return [
        f"{','.join(sorted(route.methods or ['*']))} {route.path}"
        for route in iter_route_contexts(app.routes)
        if not is_public(route) and not _declares_scope(route)
    ]


def is_public(route: RouteContext) -> bool:
    """Reading one of the public paths; something else that hides under their names is not."""
    return route.path in PUBLIC_PATHS and (route.methods or set()) <= {"GET", "HEAD"}


def _declares_scope(route: RouteContext) -> bool:
    dependant = getattr(route, "dependant", None)
    return isinstance(dependant, Dependant) and bool(declared_scopes(dependant))


def declared_scopes(dependant: Dependant) -> frozenset[Scope]:
    return frozenset(call.scope for call in _calls(dependant) if isinstance(call, _Requirement))


def _calls(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for child in dependant.dependencies:
        yield from _calls(child)


def _token(request: Request) -> tuple[str | None, bool]:
    for header in _HEADERS:
        scheme, _, token = request.headers.get(header, "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip(), False
    in_path = request.path_params.get("path_key")
    return in_path, in_path is not None


def _is_local(request: Request) -> bool:
    """Reached over loopback, and not under a name from outside (a web page may point its own name at 127.0.0.1), nor
    for somebody else: a proxy on this machine passes on what comes from outside, often under the name `localhost`."""
    if any(header in request.headers for header in _FORWARDED):
        return False
    server = request.scope.get("server")
    name = request.url.hostname or ""
    named_inside = "." not in name or name.endswith(".localhost") or _loopback(name) is not None
    return named_inside and (server is None or _loopback(server[0]) is not False)


def _loopback(host: str) -> bool | None:
    """None for what is not an IP address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return None
