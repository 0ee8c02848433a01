"""From facts to findings. Each sentence says what is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rlt_client.doctor.facts import NAMES, Facts, ServerFacts
from rlt_client.doctor.findings import Finding, ok, warning, wrong
from rlt_client.doctor.judging_explanations import explanation
from rlt_client.doctor.judging_jobs import jobs
from rlt_client.errors import APIError, Unauthorized
from rlt_client.schemas.common import Scope

__all__ = ["judge"]

MOST_SKEW_S: Final = 5.0  # within it nothing here depends on clocks that agree
LOOK_AT: Final = {
    "engine": "look at the engine's log; while a large model loads, wait",
    "policy": "see `rlt policies list`; the teacher's log says why an engine lacks the policy",
    "scorer": "look at the reward server's log; while a large model loads, wait",
    "database": "start Postgres, or run `rlt-jobs migrate` where the schema is old",
    "store": "look at the disk or bucket of RLT_JOBS_STORE: room, rights, credentials",
}
NEEDED_FOR: Final = {
    Scope.explain: "explanations",
    Scope.reward: "scores",
    Scope.build: "builds",
    Scope.admin: "the operator's view of the jobs service, so that half of what this command looks at stays unknown",
}


def judge(facts: Facts) -> list[Finding]:
    """Findings of each server, then of what is between them."""
    found = [finding for server in facts.servers.values() for finding in _server(server)]
    found += [*_models(facts), *explanation(facts), *(jobs(facts.jobs, idle=facts.idle) if facts.jobs else ())]
    return [*found, *_versions(facts)]


def _server(server: ServerFacts) -> Iterator[Finding]:
    if server.away is not None:
        variable = f"RLT_{server.name.upper()}_URL"
        todo = f"start it, or say where it is: --{server.name}-url or {variable}"
        yield wrong(server.name, f"the {server.name} server is not reached at {server.url}: {server.away}", todo)
        return
    yield from _identity(server)
    yield from _readiness(server)
    yield from _clock(server)
    yield from _key(server)


def _identity(server: ServerFacts) -> Iterator[Finding]:
    version = server.version
    if version is not None and version.name != NAMES[server.name]:
        says = f"at {server.url} is {version.name}, not {NAMES[server.name]}"
        yield wrong(server.name, says, f"correct --{server.name}-url or RLT_{server.name.upper()}_URL")


def _readiness(server: ServerFacts) -> Iterator[Finding]:
    if server.lacking == {}:
        yield ok(server.name, f"ready at {server.url}, version {server.version.version if server.version else '?'}")
    for name, why in (server.lacking or {}).items():
        yield wrong(server.name, f"not ready: {name}: {why}", LOOK_AT.get(name, f"look at the {server.name}'s log"))


def _clock(server: ServerFacts) -> Iterator[Finding]:
    skew = server.skew_s or 0.0
    if abs(skew) > MOST_SKEW_S:
        direction = "ahead of" if skew > 0 else "behind"
        says = f"its clock is {abs(skew):.0f} s {direction} this machine's"
        yield warning(server.name, says, "let both follow a time server (NTP): signatures of S3 and TLS depend on it")


def _key(server: ServerFacts) -> Iterator[Finding]:
    for scope, refusal in server.refusals.items():
        if refusal is None:
            yield ok(server.name, f"the key is enough for scope {scope}")
        elif scope is Scope.admin:
            todo = "give a key with the scope admin: --key or RLT_KEY"
            yield warning(server.name, f"{_refused(server, refusal, scope)}: it opens {NEEDED_FOR[scope]}", todo)
        else:
            todo = f"`rlt keys create --scope {scope}` makes one; its line goes into the {server.name}'s keys file"
            yield wrong(server.name, f"{_refused(server, refusal, scope)}, which {NEEDED_FOR[scope]} need", todo)


def _refused(server: ServerFacts, refusal: APIError, scope: Scope) -> str:
    if not isinstance(refusal, Unauthorized):
        return f"the key lacks the scope {scope}"
    return f"the key is not one of this server's (scope {scope})" if server.with_key else f"no key (scope {scope})"


def _models(facts: Facts) -> Iterator[Finding]:
    """The engines, and whether the reward server's own teacher is the one that explains."""
    policies, models = facts.policies, facts.models
    down = [engine for engine in policies.engines if not engine.up] if policies else []
    for engine in down:
        says = f"the engine {engine.name} is down: {engine.detail or 'no reason known'}"
        some_left = policies is not None and len(down) < len(policies.engines)
        todo = "look at its log; the teacher uses it again by itself once it gives a token"
        yield warning("teacher", says, todo) if some_left else wrong("teacher", says, todo)
    for policy in policies.policies if policies else []:
        if policy.detail:
            says = f"policy {policy.name} is not in the engines: {policy.detail}"
            yield warning("teacher", says, "see `rlt policies list`")
    if policies and models and models.teacher and models.teacher.revision != policies.active.revision:
        says = (
            f"the reward server's own teacher ({models.teacher.name}, {models.teacher.revision[:19]}) is not the "
            f"policy that explains ({policies.active.name}, {policies.active.revision[:19]})"
        )
        todo = "mind it where items are scored without the teacher's log-probs; `rlt models load teacher` changes it"
        yield warning("stack", says, todo)


def _versions(facts: Facts) -> Iterator[Finding]:
    told = {name: server.version.version for name, server in facts.servers.items() if server.version}
    others = {name: each for name, each in told.items() if each != facts.version}
    if others:
        listed = ", ".join(f"{name} {each}" for name, each in others.items())
        says = f"versions differ: this client {facts.version}, {listed}"
        yield warning("stack", says, "finish the update: servers of one version belong together")
