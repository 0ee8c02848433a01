"""`/policies` over HTTP: the routes, the clients and the command, with the tiny model in the server's process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from rlt_client import ExplainRequest, TeacherClient
from rlt_client.cli.app import make_app
from rlt_client.errors import Conflict, InvalidRequest, NotFound
from rlt_client.schemas.common import Scope
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import LoadPolicy
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.revision import model_revision
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.engine.weights import Loader

MakeAdapter = Callable[..., Path]
QUESTION = {"question": "Q 36 A +5 B *3 C +11 D +5", "answer": "17"}


@pytest.fixture(scope="module")
def url(settings: Callable[..., Any], policies_dir: Path) -> Iterator[str]:
    with running(lambda: build(settings(allowed_roots=[policies_dir]))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[TeacherClient]:
    with TeacherClient(url) as client:
        yield client
        while client.policies().history:
            client.rollback_policy()
        for name in {policy.name for policy in client.policies().policies if not policy.active}:
            client.delete_policy(name)


@pytest.fixture
def base(tiny_model: Path) -> str:
    return model_revision(tiny_model)


@pytest.fixture
def text(client: TeacherClient, problem: dict[str, str]) -> Callable[..., tuple[str, str]]:
    """A greedy explanation, and the revision of who wrote it."""

    def ask(policy: str | None = None) -> tuple[str, str]:
        reply = client.explain(ExplainRequest(**problem, policy=policy, temperature=0, max_tokens=27))
        return reply.explanations[0].completion or "", reply.policy.revision

    return ask


def call(url: str, method: str, path: str, **given: Any) -> tuple[int, Any]:
    reply = httpx.request(method, f"{url}{path}", timeout=60, **given)
    return reply.status_code, reply.json() if reply.content else None


def test_a_revision_in_an_address_may_be_written_as_it_is_told(
    url: str, client: TeacherClient, tiny_adapter: MakeAdapter
) -> None:
    revision = client.load_policy(LoadPolicy(name="typed", source=str(tiny_adapter(1)))).policy.revision
    assert "+" in revision
    assert call(url, "DELETE", f"/policies/typed?revision={revision}") == (204, None)


def test_policies_write_differently_and_say_who_wrote(
    client: TeacherClient, text: Callable[..., tuple[str, str]], tiny_adapter: MakeAdapter, other_model: Path, base: str
) -> None:
    one, two = (client.load_policy(LoadPolicy(name=f"lora-{n}", source=str(tiny_adapter(n)))) for n in (1, 2))
    assert one.policy.revision == f"{base}+{model_revision(tiny_adapter(1))}"
    texts = {name: text(name) for name in (None, "lora-1", "lora-2")}
    assert len({written for written, _ in texts.values()}) == 3
    assert [revision for _, revision in texts.values()] == [base, one.policy.revision, two.policy.revision]
    full = client.load_policy(LoadPolicy(name="full", source=str(other_model), kind=ModelKind.full, activate=True))
    written, revision = text()
    assert revision == full.policy.revision == model_revision(other_model)
    assert written != texts[None][0]
    with pytest.raises(Conflict, match="policy_not_loaded") as caught:
        text("lora-1")
    assert caught.value.errors[0].pointer == "/policy"
    assert client.rollback_policy(expected_revision=revision).revision == base
    assert text() == texts[None]
    assert text("lora-1") == texts["lora-1"]


def test_the_routes(url: str, client: TeacherClient, tiny_adapter: MakeAdapter, base: str) -> None:
    body = {"name": "org/run", "source": str(tiny_adapter(1))}
    status, loaded = call(url, "POST", "/policies", json=body)
    assert (status, loaded["loaded"], loaded["policy"]["state"]) == (201, True, "serving")
    revision = loaded["policy"]["revision"]
    assert call(url, "POST", "/policies", json=body)[0] == 200
    status, active = call(url, "POST", "/policies/org/run/activate")
    assert (status, active["active"], active["revision"]) == (200, True, revision)
    listed = call(url, "GET", "/policies")[1]
    assert listed["active"] == active | {"requests": 0}
    assert listed["policies"][0]["name"] == "org/run"
    assert listed["history"] == [{"name": listed["policies"][1]["name"], "revision": base}]
    assert [engine["up"] for engine in listed["engines"]] == [True]
    assert call(url, "POST", "/policies/org/run/activate", json={"revision": revision})[0] == 200
    assert call(url, "DELETE", "/policies/org/run")[1]["type"] == "policy_is_active"
    assert call(url, "POST", "/policies/rollback", json={"expected_revision": revision})[1]["revision"] == base
    assert call(url, "POST", "/policies/rollback")[1]["type"] == "nothing_to_roll_back"
    assert call(url, "POST", "/policies/org/run/unload")[1]["state"] == "known"
    assert call(url, "DELETE", "/policies/org/run", params={"revision": "sha256:0"})[0] == 404
    assert call(url, "DELETE", "/policies/org/run", params={"revision": revision}) == (204, None)
    assert call(url, "DELETE", "/policies/org/run")[1]["type"] == "policy_not_found"


FAULTS = {
    "rank-is-not-the-weights": "lora",
    "adapter-cut-off": "lora",
    "modules-the-model-lacks": "lora",
    "architecture": "full",
    "tensor-missing": "full",
    "model-cut-off": "full",
}


@pytest.mark.parametrize(("fault", "kind"), FAULTS.items())
def test_faulty_folders(url: str, broken_policy: Callable[[str], Path], fault: str, kind: str) -> None:
    before = call(url, "GET", "/policies")
    body = {"name": "bad", "source": str(broken_policy(fault)), "kind": kind, "activate": True}
    status, problem = call(url, "POST", "/policies", json=body)
    assert (status, problem["type"], problem["errors"][0]["pointer"]) == (422, "unusable_policy", "/source")
    assert call(url, "GET", "/policies") == before


@pytest.mark.parametrize(
    ("given", "status", "type", "pointer"),
    [
        ({"source": "/etc"}, 422, "path_not_allowed", "/source"),
        ({"source": "nowhere"}, 422, "unusable_policy", "/source"),
        ({"name": "../x"}, 422, "invalid_request", "/name"),
        ({"kind": "other"}, 422, "invalid_request", "/kind"),
        ({"unknown": 1}, 422, "invalid_request", "/unknown"),
        ({"expected_revision": "sha256:0"}, 409, "revision_mismatch", "/expected_revision"),
    ],
)
def test_refusals_point(
    url: str, tiny_adapter: MakeAdapter, given: dict[str, Any], status: int, type: str, pointer: str
) -> None:
    body = {"name": "x", "source": str(tiny_adapter(1))} | given
    found, problem = call(url, "POST", "/policies", json=body)
    assert (found, problem["type"], problem["errors"][0]["pointer"]) == (status, type, pointer)


CHANGES = [
    ("POST", "/policies"),
    ("POST", "/policies/x/activate"),
    ("POST", "/policies/rollback"),
    ("POST", "/policies/x/unload"),
    ("DELETE", "/policies/x"),
]


async def test_scopes(settings: Callable[..., Any]) -> None:
    """Keys are looked at before anything else: this app is not even started."""
    tokens = {scope: create_token() for scope in (Scope.explain, Scope.reward)}
    keys = ";".join(Key(hash_token(token), scope, frozenset({scope})).line() for scope, token in tokens.items())
    transport = httpx.ASGITransport(build(settings(keys=keys)))
    async with httpx.AsyncClient(transport=transport, base_url="http://teacher") as client:
        for method, path in CHANGES:
            bearer = {"authorization": f"Bearer {tokens[Scope.explain]}"}
            assert (await client.request(method, path, headers=bearer)).json()["type"] == "missing_scope", path
            assert (await client.request(method, path)).status_code == 401
        bearer = {"authorization": f"Bearer {tokens[Scope.reward]}"}
        assert (await client.get("/policies", headers=bearer)).json()["type"] == "missing_scope"


def test_a_caller_who_hangs_up(
    url: str, client: TeacherClient, tiny_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load goes on to its end."""
    adapted, hung_up = Loader.adapted, threading.Event()

    def waits(self: Loader, *given: Any) -> Any:
        assert hung_up.wait(60)
        return adapted(self, *given)

    monkeypatch.setattr(Loader, "adapted", waits)
    body = {"name": "gone", "source": str(tiny_adapter(3)), "activate": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/policies", json=body, timeout=httpx.Timeout(60, read=0.005))
    hung_up.set()
    deadline = time.monotonic() + 60
    while client.policies().active.name != "gone":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert client.explain(ExplainRequest(**QUESTION, max_tokens=5)).policy.name == "gone"


def test_the_client(client: TeacherClient, tiny_adapter: MakeAdapter, base: str) -> None:
    request = LoadPolicy(name="org/run", source=str(tiny_adapter(1)), activate=True)
    loaded = client.load_policy(request, deadline=60)
    assert loaded.loaded
    assert not client.load_policy(request).loaded
    assert client.policies().active.name == "org/run"
    with pytest.raises(Conflict, match="policy_is_active"):
        client.unload_policy("org/run")
    assert client.rollback_policy().revision == base
    assert client.activate_policy("org/run", loaded.policy.revision).active
    client.rollback_policy(expected_revision=loaded.policy.revision)
    assert client.unload_policy("org/run").state == "known"
    client.delete_policy("org/run", loaded.policy.revision)
    with pytest.raises(NotFound, match="policy_not_found"):
        client.delete_policy("org/run")
    with pytest.raises(InvalidRequest, match="path_not_allowed"):
        client.load_policy(LoadPolicy(name="x", source="/etc"))


def test_the_command(
    url: str, client: TeacherClient, tiny_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.setenv("COLUMNS", "250")

    def rlt(*arguments: str) -> Result:
        return CliRunner().invoke(make_app(), ["policies", *arguments, "--teacher-url", url])

    source = str(tiny_adapter(2))
    loaded = rlt("load", "run", source)
    assert loaded.exit_code == 0, loaded.output
    assert loaded.output.startswith(f"run {base}+{model_revision(tiny_adapter(2))} loaded in")
    assert "was there already: active, serving" in rlt("load", "run", source, "--activate").output
    listed = rlt("list").output.splitlines()
    assert listed[1].split()[0] == "run"
    assert "active, serving" in listed[1]
    assert "−1" in listed[2]
    assert any("up" in line and base in line for line in listed[3:])
    assert {"active", "policies", "history", "engines"} <= set(json.loads(rlt("list", "--json").output))
    assert isinstance(rlt("delete", "run").exception, Conflict)
    assert base in rlt("rollback").output
    assert isinstance(rlt("rollback").exception, Conflict)
    assert "active" in rlt("activate", "run").output
    assert rlt("rollback", "--expected-revision", f"{base}+{model_revision(tiny_adapter(2))}").exit_code == 0
    assert "known" in rlt("unload", "run").output
    assert rlt("delete", "run").exit_code == 0
    assert rlt("load", "no name", source).exit_code == 2


def test_metrics(url: str, client: TeacherClient, text: Callable[..., Any], tiny_adapter: MakeAdapter) -> None:
    loaded = client.load_policy(LoadPolicy(name="counted", source=str(tiny_adapter(1)), activate=True))
    text("counted")
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    active = [line for line in lines if line.startswith("rlt_teacher_policy_active{")]
    assert active == [f'rlt_teacher_policy_active{{name="counted",revision="{loaded.policy.revision}"}} 1.0']
    assert 'rlt_teacher_policy_requests_total{name="counted"} 1.0' in lines
    assert any(line.startswith('rlt_teacher_policy_changes_total{kind="load"}') for line in lines)
