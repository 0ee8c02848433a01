"""Attacks from inside: what somebody who has taken over one container can reach, read, write and call."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compose.files import services
from compose.stack import Stack
from compose.topology import ALLOWED, LISTENERS, OUTSIDE

__all__ = ["Finding", "attack"]

PROBE = Path(__file__).with_name("probe.py").read_text()
PYTHON = {"jobs-api": "python", "jobs-relay": "python", "jobs-worker": "python", "teacher": "python"} | {
    "reward": "python",
    "engine": "python3",
}
"""Services whose images have an interpreter: the attack runs in them. Others lend their network to another image."""
OTHERS = ("proxy", "postgres", "redis")
FOLDERS = ["/", "/app", "/etc", "/usr/bin", "/models", "/policies", "/store", "/data", "/run/secrets", "/tmp"]
WRITABLE = {
    "jobs-api": {"/store", "/tmp"},
    "jobs-relay": {"/store", "/tmp"},
    "jobs-worker": {"/store", "/tmp"},
    "teacher": {"/store", "/tmp"},
    "reward": {"/tmp"},
    "engine": {"/tmp"},
}
CALLS: dict[str, list[tuple[str, str, str, int]]] = {  # method, URL, key (a secret file's name or a token), status
    "jobs-worker": [
        ("GET", "http://teacher:8001/policies", "", 401),
        ("POST", "http://teacher:8001/policies", "rlt_jobs_teacher_key", 403),
        ("POST", "http://reward:8002/models", "rlt_jobs_reward_key", 403),
        ("POST", "http://reward:8002/reward", "rlt_jobs_teacher_key", 401),
        ("GET", "http://jobs-api:8003/builds", "rlt_jobs_teacher_key", 401),
        (
            "POST",
            "http://teacher:8001/explain",
            "rlt_jobs_teacher_key",
            422,
        ),  # its own: the empty body is what is wrong
    ],
    "teacher": [
        ("GET", "http://engine:8000/health", "", 200),
        ("GET", "http://jobs-api:8003/builds", "rlt_teacher_reward_key", 401),
        ("POST", "http://reward:8002/models", "rlt_teacher_reward_key", 403),
        ("POST", "http://reward:8002/reward", "rlt_teacher_reward_key", 422),
    ],
    "reward": [
        ("GET", "http://jobs-api:8003/builds", "", 401),
        ("POST", "http://teacher:8001/explain", "", 401),
    ],
    "engine": [
        ("POST", "http://teacher:8001/policies", "", 401),
        ("POST", "http://teacher:8001/explain", "", 401),
    ],
}
OWN: dict[str, set[str]] = {
    "jobs": {f"rlt_jobs_{name}" for name in ("database_url", "keys", "redis_url", "reward_key", "teacher_key")}
    | {"aws_credentials"},
    "teacher": {"rlt_teacher_keys", "rlt_teacher_reward_key"},
    "reward": {"rlt_reward_keys"},
    "engine": set(),
}
"""The secrets that each finds in its container."""
NO_PASSWORD = "NOAUTH"
GREETING = "this machine"
Place = tuple[str, int, str, str]
"""Host, port, what is said, and how the answer begins: a regular expression."""
ROLE = """
import os, psycopg
with open("/run/secrets/rlt_jobs_database_url") as file:
    url = file.read().strip().replace("+psycopg", "")
with psycopg.connect(url, autocommit=True) as link:
    found = link.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    print("superuser" if found[0] else "user")
    try:
        link.execute("COPY (SELECT 1) TO PROGRAM 'true'")
        print("ran a program")
    except psycopg.Error as error:
        print(type(error).__name__)
try:
    psycopg.connect(url.rpartition("/")[0] + "/postgres").close()
    print("connected")
except psycopg.Error as error:
    print("refused")
"""


@dataclass(frozen=True)
class Finding:
    who: str
    what: str
    expected: str
    found: str

    @property
    def wrong(self) -> bool:
        return self.expected != self.found


def attack(stack: Stack) -> Iterator[Finding]:
    """Everything that was tried, with what must come of it."""
    with _listener() as (port, hosts):
        places = _places(stack, port, hosts)
        for who in (*PYTHON, *OTHERS):
            yield from _try(stack, who, places)
    yield from _of_the_database(stack)
    yield from _from_outside(stack)
    yield from _leaks(stack)


@contextmanager
def _listener() -> Iterator[tuple[int, list[str]]]:
    """Something on this machine that a container must not reach, and this machine's addresses."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        addresses = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        yield server.getsockname()[1], [*sorted(map(str, addresses)), "host.docker.internal"]


def _accept(server: socket.socket) -> None:
    try:
        while True:
            with server.accept()[0] as link:
                link.sendall(GREETING.encode())
    except OSError:  # closed: the attack is over
        return


def _places(stack: Stack, port: int, hosts: list[str]) -> dict[str, list[Place]]:
    """Where each service can be tried, by its name and by every address that it has, and how it is known."""
    found: dict[str, list[Place]] = {}
    gateways: set[str] = set()
    for name, listener in LISTENERS.items():
        networks = stack.inspect(name)["NetworkSettings"]["Networks"].values()
        gateways |= {network["Gateway"] for network in networks}
        own = [name, *(network["IPAddress"] for network in networks)]
        found[name] = [(host, listener.port, listener.hello, listener.answer) for host in own]
    found[OUTSIDE] = [(host, port, "", GREETING) for host in [*hosts, *sorted(filter(None, gateways))]]
    return found


def _try(stack: Stack, who: str, places: Mapping[str, list[Place]]) -> Iterator[Finding]:
    calls = CALLS.get(who, [])
    orders = {
        "places": {name: where for name, where in places.items() if name != who},
        "folders": FOLDERS,
        "requests": [call[:3] for call in calls],
        "said": [("redis", 6379, "PING\r\n")] if "redis" in ALLOWED[who] and who in PYTHON else [],
    }
    seen = _probe(stack, who, orders)
    for name, reached in seen["reached"].items():
        yield Finding(who, f"→ {name}", _word(name in ALLOWED[who]), _word(reached))
    if who not in PYTHON:  # the rest is of the image that the probe ran in
        return
    for (method, url, key, status), got in zip(calls, seen["requests"], strict=True):
        yield Finding(who, f"{method} {url} with {key or 'no key'}", str(status), str(got))
    for words in seen["said"]:
        yield Finding(who, "redis without a password", NO_PASSWORD, words.lstrip("-").split(" ")[0])
    yield from _of_the_container(who, seen)


def _probe(stack: Stack, who: str, orders: dict[str, Any]) -> dict[str, Any]:
    variable = ["-e", f"ORDERS={json.dumps(orders)}"]
    if who in PYTHON:
        told = stack.docker("exec", "-i", *variable, stack.container(who), PYTHON[who], "-", stdin=PROBE)
    else:
        image = stack.inspect("jobs-api")["Config"]["Image"]
        lent = ["--network", f"container:{stack.container(who)}", "--cap-drop", "ALL", "--read-only"]
        told = stack.docker("run", "--rm", "-i", *variable, *lent, image, "python", "-", stdin=PROBE)
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def _word(reached: bool) -> str:
    return "reached" if reached else "closed"


def _of_the_container(who: str, seen: dict[str, Any]) -> Iterator[Finding]:
    rights = seen["rights"]
    yield Finding(who, "user", "10001", rights["Uid"])
    yield Finding(who, "capabilities", "0 0", f"{int(rights['CapEff'], 16):x} {int(rights['CapBnd'], 16):x}")
    yield Finding(who, "no_new_privs, seccomp", "1 2", f"{rights['NoNewPrivs']} {rights['Seccomp']}")
    yield Finding(who, "writable", " ".join(sorted(WRITABLE[who])), " ".join(sorted(seen["writable"])))
    yield Finding(who, "sockets of the machine", "[]", str(seen["sockets"]))
    yield Finding(who, "secrets", _own(who), " ".join(seen["secrets"]))


def _own(who: str) -> str:
    server = "jobs" if who.startswith("jobs") else who
    return " ".join(sorted(OWN[server]))


def _of_the_database(stack: Stack) -> Iterator[Finding]:
    told = stack.exec("jobs-worker", "python", "-c", ROLE).split()
    for what, expected, found in zip(
        ("role in Postgres", "COPY TO PROGRAM", "another database"),
        ("user", "InsufficientPrivilege", "refused"),
        told,
        strict=True,
    ):
        yield Finding("jobs-worker", what, expected, found)


def _from_outside(stack: Stack) -> Iterator[Finding]:
    """From this machine: the proxy on loopback, and nothing else."""
    published = {
        name: sorted({each["HostIp"] for ports in _ports(stack, name) for each in ports})
        for name, service in services().items()
        if service["restart"] != "no" and "profiles" not in service
    }
    for name, addresses in published.items():
        yield Finding(
            "this machine", f"published by {name}", "127.0.0.1" if name == "proxy" else "", " ".join(addresses)
        )


def _ports(stack: Stack, name: str) -> list[list[dict[str, str]]]:
    ports: dict[str, list[dict[str, str]] | None] = stack.inspect(name)["NetworkSettings"]["Ports"]
    return [given for given in ports.values() if given]


def _leaks(stack: Stack) -> Iterator[Finding]:
    """No key and no password in what Docker shows of a container, or in any log."""
    files = [file for file in stack.secrets.rglob("*") if file.is_file() and not file.name.endswith("_keys")]
    words = {word for file in files for word in re.findall(r"rlt_[a-z2-7]{52}|[0-9a-f]{64}", file.read_text())}
    logs = stack.logs("--tail", "all")
    yield Finding("anybody", f"{len(words)} secrets in the logs", "0", str(sum(word in logs for word in words)))
    shown = "".join(json.dumps(stack.inspect(name)) for name in (*PYTHON, *OTHERS))
    yield Finding("anybody", "secrets in docker inspect", "0", str(sum(word in shown for word in words)))
