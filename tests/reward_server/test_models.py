"""`/models`: several served side by side, loaded and switched while requests go on, refused without a trace."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from rlt_client.schemas.common import Scope
from rlt_reward_server.app import build
from rlt_reward_server.engine.scorer import CausalScorer
from rlt_reward_server.loading.weights import read_weights
from rlt_reward_server.settings import Settings
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.revision import model_revision
from rlt_service.testing import running

SettingsOf = Callable[..., Settings]
Variant = Callable[[int], Path]

ITEM = {"question": "What is 2 times 3?", "answer": "It is 6.", "explanation": "\n\nis carry so of"}
BODY: dict[str, Any] = {"items": [ITEM], "detail": "tokens"}

request = partial(
    httpx.request, verify=False, timeout=60
)  # plain HTTP: reading the certificates takes most of the time


class Server:
    """A running server and the app behind it."""

    def __init__(self, url: str, app: FastAPI) -> None:
        self.url = url
        self.app = app

    def load(self, role: str, name: str, source: Path | str, **options: Any) -> httpx.Response:
        body = {"role": role, "name": name, "source": str(source), **options}
        return request("POST", f"{self.url}/models", json=body)

    def unload(self, role: str, name: str) -> httpx.Response:
        return request("DELETE", f"{self.url}/models/{role}/{name}")

    def models(self) -> Any:
        return request("GET", f"{self.url}/models").json()

    def reward(self, **options: Any) -> httpx.Response:
        return request("POST", f"{self.url}/reward", json=BODY | options)

    def kl(self, **options: Any) -> list[float]:
        reply = self.reward(**options)
        assert reply.status_code == 200, reply.text
        found: list[float] = reply.json()["items"][0]["token_scores"]["think"]["kl"]
        return found


def serve(settings: Settings) -> Iterator[Server]:
    apps: list[FastAPI] = []

    def make() -> FastAPI:
        apps.append(build(settings))
        return apps[0]

    with running(make) as url:
        yield Server(url, apps[0])


@pytest.fixture
def roots(golden_dir: Path, variant: Variant, tmp_path: Path) -> list[Path]:
    return [golden_dir, variant(1).parent, tmp_path]


@pytest.fixture
def server(settings: SettingsOf, golden_dir: Path, roots: list[Path]) -> Iterator[Server]:
    """Nothing is answered from the cache: each request goes through the models."""
    yield from serve(settings(teacher=f"policy={golden_dir / 'teacher'}", allowed_roots=roots, cache_s=0))


def test_a_new_version_is_served_under_the_old_name(server: Server, variant: Variant) -> None:
    before = server.kl()
    reply = server.load("teacher", "policy", variant(1))
    assert reply.status_code == 201, reply.text
    model = reply.json()["model"]
    assert model["revision"] == model_revision(variant(1))
    assert (model["default"], model["state"], model["kind"]) == (True, "serving", "full")
    assert (
        model["memory_bytes"] == (variant(1) / "model.safetensors").stat().st_size // 1000 * 1000
        or model["memory_bytes"] > 0
    )
    assert reply.json()["seconds"] > 0
    assert server.kl() != before
    scored = server.reward().json()
    assert scored["teacher"] == {"name": "policy", "revision": model["revision"]}
    assert [teacher["revision"] for teacher in server.models()["teachers"]] == [model["revision"]]


def test_the_same_revision_again_loads_nothing(server: Server, variant: Variant, golden_dir: Path) -> None:
    assert server.load("teacher", "policy", variant(1)).status_code == 201
    versions = server.app.state.models.registry.versions()
    again = server.load("teacher", "policy", variant(1))
    assert (again.status_code, again.json()["loaded"]) == (200, False)
    assert server.app.state.models.registry.versions() == versions


def test_one_set_of_weights_has_many_names(server: Server, golden_dir: Path) -> None:
    assert server.load("teacher", "frozen", golden_dir / "teacher").status_code == 201
    policy, frozen = (v.model for v in server.app.state.models.registry.versions() if v.role == "teacher")
    assert policy.scorers is frozen.scorers
    assert server.reward(teacher="frozen").json()["teacher"]["name"] == "frozen"


def test_weights_in_use_are_run_by_their_replicas_only(
    server: Server, golden_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second thread inside the same modules would exchange their attention under a batch."""
    threads: set[str] = set()
    log_probs = CausalScorer.log_probs

    def watched(scorer: CausalScorer, passes: Any) -> Any:
        threads.add(threading.current_thread().name)
        return log_probs(scorer, passes)

    monkeypatch.setattr(CausalScorer, "log_probs", watched)
    assert server.load("teacher", "frozen", golden_dir / "teacher").status_code == 201
    assert server.reward(teacher="frozen").status_code == 200
    assert threads == {"scorer-0"}


def test_students_and_teachers_side_by_side(server: Server, variant: Variant, golden_dir: Path) -> None:
    """Each pair by name; the defaults stay until they are told to change."""
    assert server.load("teacher", "one", variant(1)).status_code == 201
    assert server.load("student", "org/big", variant(2)).status_code == 201
    default = server.reward().json()
    assert (default["student"]["name"], default["teacher"]["name"]) == ("student", "policy")
    pair = server.reward(student="org/big", teacher="one").json()
    assert pair["student"] == {"name": "org/big", "revision": model_revision(variant(2))}
    assert pair["teacher"] == {"name": "one", "revision": model_revision(variant(1))}
    four = {tuple(server.kl(student=s, teacher=t)) for s in ("student", "org/big") for t in ("policy", "one")}
    assert len(four) == 4
    again = server.load("student", "org/big", variant(2), default=True)
    assert (again.status_code, again.json()["model"]["default"]) == (200, True)
    assert server.reward().json()["student"]["name"] == "org/big"
    assert server.models()["student"]["name"] == "org/big"


def test_several_models_at_the_start(settings: SettingsOf, golden_dir: Path, variant: Variant) -> None:
    given = settings(students=[f"other={golden_dir / 'student'}"], teachers=[f"a={variant(1)}", str(variant(2))])
    for server in serve(given):
        listed = server.models()
        assert [(m["name"], m["default"]) for m in listed["students"]] == [("student", True), ("other", False)]
        assert [(m["name"], m["default"]) for m in listed["teachers"]] == [("a", True), ("step-2", False)]
        assert server.reward(student="other", teacher="step-2").status_code == 200


def test_unknown_names(server: Server) -> None:
    for role in ("student", "teacher"):
        refused = server.reward(**{role: "nobody"})
        assert (refused.status_code, refused.json()["type"]) == (404, f"unknown_{role}")
        assert refused.json()["errors"][0]["pointer"] == f"/{role}"
        assert server.unload(role, "nobody").status_code == 404


def test_unloading(server: Server, variant: Variant) -> None:
    server.load("teacher", "org/one", variant(1))
    assert server.unload("teacher", "org/one").status_code == 204
    assert server.reward(teacher="org/one").status_code == 404
    for role, name in (("teacher", "policy"), ("student", "student")):
        refused = server.unload(role, name)
        assert (refused.status_code, refused.json()["type"]) == (409, "model_is_default")
    assert server.reward().status_code == 200


def test_a_stale_teacher_is_refused_right_after_the_switch(server: Server, variant: Variant) -> None:
    old = server.models()["teacher"]["revision"]
    assert server.reward(teacher_revision=old).status_code == 200
    new = server.load("teacher", "policy", variant(1)).json()["model"]["revision"]
    refused = server.reward(teacher_revision=old)
    assert (refused.status_code, refused.json()["type"]) == (409, "stale_teacher")
    assert server.reward(teacher_revision=new).status_code == 200
    server.load("teacher", "other", variant(2))
    refused = server.reward(teacher="other", teacher_revision=new)
    assert (refused.status_code, refused.json()["type"]) == (409, "stale_teacher"), "it is of another teacher"


# What is refused leaves everything as it was


@pytest.fixture(scope="module")
def standing(settings: SettingsOf, golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for everything that must not change it; its root is `shared`."""
    shared = tmp_path_factory.mktemp("shared")
    for server in serve(settings(teacher=f"policy={golden_dir / 'teacher'}", allowed_roots=[shared])):
        server.app.state.shared = shared
        yield server


@pytest.fixture
def broken(standing: Server, golden_dir: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the golden teacher inside the roots, to be broken."""
    return Path(shutil.copytree(golden_dir / "teacher", standing.app.state.shared / request.node.name))


def refused(server: Server, role: str, source: Path | str, **options: Any) -> Any:
    """The problem; nothing else has changed."""
    before, score = server.models(), server.kl()
    reply = server.load(role, "policy" if role == "teacher" else "student", source, **options)
    assert reply.status_code >= 400, reply.text
    assert server.models() == before
    assert server.kl() == score
    return reply.status_code, reply.json()


def test_a_folder_without_model(standing: Server, broken: Path) -> None:
    (broken / "config.json").unlink()
    status, problem = refused(standing, "teacher", broken)
    assert (status, problem["type"]) == (422, "unusable_model")
    assert "config.json" in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/source"


def test_weights_that_break_off(standing: Server, broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert refused(standing, "teacher", broken)[1]["type"] == "unusable_model"
    weights.write_bytes(b"\xff" * 100)
    assert refused(standing, "student", broken)[1]["type"] == "unusable_model"


def test_weights_that_are_pickles(standing: Server, broken: Path) -> None:
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    status, problem = refused(standing, "teacher", broken)
    assert (status, problem["type"]) == (422, "unusable_model")


def test_code_beside_the_weights_is_not_run(standing: Server, broken: Path) -> None:
    marker = broken / "was_run"
    (broken / "modeling_x.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).write_text('')\n")
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "x", "auto_map": {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.C"}}
    (broken / "config.json").write_text(json.dumps(config))
    assert refused(standing, "teacher", broken)[1]["type"] == "unusable_model"
    assert not marker.exists()


def test_weights_that_are_not_numbers(standing: Server, broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    status, problem = refused(standing, "teacher", broken)
    assert (status, problem["type"]) == (422, "unusable_model")


def test_a_student_that_cannot_take_the_required_formats(standing: Server, broken: Path) -> None:
    (broken / "chat_template.jinja").unlink()
    status, problem = refused(standing, "student", broken)
    assert (status, problem["type"]) == (422, "unusable_model")
    assert "'golden'" in problem["detail"]


def test_a_teacher_that_cannot_take_the_required_formats(standing: Server, broken: Path) -> None:
    (broken / "chat_template.jinja").write_text("{{ 'always the same' }}")
    status, problem = refused(standing, "teacher", broken)
    assert (status, problem["type"]) == (422, "unusable_model")


def test_another_revision_than_was_expected(standing: Server, broken: Path) -> None:
    status, problem = refused(standing, "teacher", broken, expected_revision="sha256:0123456789abcdef")
    assert (status, problem["type"]) == (409, "revision_mismatch")
    assert model_revision(broken) in problem["detail"]


@pytest.mark.parametrize(
    "source", ["/etc", "https://example.org/model", "file:///etc", "../..", "org/model", "~/model", "nowhere"]
)
def test_sources_outside_the_roots(standing: Server, source: str) -> None:
    status, problem = refused(standing, "teacher", source)
    assert status == 422
    assert problem["type"] in ("path_not_allowed", "unusable_model")
    assert "hub" not in problem["detail"]


def test_a_link_out_of_the_roots(standing: Server, golden_dir: Path) -> None:
    (standing.app.state.shared / "link").symlink_to(golden_dir / "teacher")
    assert refused(standing, "teacher", "link")[1]["type"] == "path_not_allowed"


def test_a_link_out_of_the_roots_inside_the_folder(standing: Server, broken: Path, golden_dir: Path) -> None:
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").symlink_to(golden_dir / "teacher" / "model.safetensors")
    assert refused(standing, "teacher", broken)[1]["type"] == "path_not_allowed"


def test_an_index_that_names_files_elsewhere(standing: Server, broken: Path, golden_dir: Path) -> None:
    (broken / "model.safetensors").rename(broken / "model-1.safetensors")
    names = load_file(broken / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, str(golden_dir / "teacher" / "model.safetensors"))}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    status, problem = refused(standing, "teacher", broken)
    assert (status, problem["type"]) == (422, "unusable_model")
    assert "not a file of this folder" in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"role": "judge", "name": "x", "source": "x"},
        {"role": "teacher", "name": "../x", "source": "/x"},
        {"role": "teacher", "name": "x", "source": "x", "base": "y"},
        {"role": "teacher", "name": "x", "source": "x", "kind": "lora"},
        {"role": "teacher", "name": "x", "source": "x", "trust_remote_code": True},
    ],
)
def test_requests_that_are_wrong(standing: Server, body: dict[str, Any]) -> None:
    reply = request("POST", f"{standing.url}/models", json=body)
    assert (reply.status_code, reply.json()["type"]) == (422, "invalid_request"), reply.text
    assert reply.json()["errors"]


def test_only_administrators_load_models(settings: SettingsOf, golden_dir: Path) -> None:
    token = create_token()
    key = Key(hash_token(token), "trainer", frozenset({Scope.reward})).line()
    for server in serve(settings(keys=key, allowed_roots=[golden_dir])):
        headers = {"authorization": f"Bearer {token}"}
        body = {"role": "teacher", "name": "t", "source": "teacher"}
        assert request("GET", f"{server.url}/models", headers=headers).status_code == 200
        refused = request("POST", f"{server.url}/models", json=body, headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (403, "missing_scope")
        refused = request("DELETE", f"{server.url}/models/student/student", headers=headers)
        assert refused.status_code == 403


# Two tokenizers


@pytest.fixture(scope="session")
def other_tokenizer(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden teacher with a tokenizer that merges fewer characters, and with other ids."""
    folder = Path(shutil.copytree(golden_dir / "teacher", tmp_path_factory.mktemp("other") / "teacher"))
    shape = json.loads((folder / "tokenizer.json").read_text())
    shape["model"]["merges"] = shape["model"]["merges"][: len(shape["model"]["merges"]) // 3]
    vocabulary = shape["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    (folder / "tokenizer.json").write_text(json.dumps(shape))
    Tokenizer.from_file(str(folder / "tokenizer.json"))
    return folder


def test_a_teacher_with_another_tokenizer_is_served(server: Server, roots: list[Path], other_tokenizer: Path) -> None:
    source = shutil.copytree(other_tokenizer, roots[-1] / "other")
    assert server.load("teacher", "other", source).status_code == 201
    assert server.reward(spec="rlt_segments", teacher="other").status_code == 200
    refused = server.reward(spec="rlt", teacher="other")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/spec/preset")
    assert server.reward(spec="rlt").status_code == 200


def test_the_tokenizer_of_sent_log_probs(settings: SettingsOf, other_tokenizer: Path, golden_dir: Path) -> None:
    """It matters for what is sent only: a tokenizer that equals the student's changes nothing."""
    for folder, other in ((other_tokenizer, True), (golden_dir / "teacher", False)):
        for server in serve(settings(teacher_tokenizer=folder)):
            selection = server.app.state.models.registry.default
            assert (selection.teacher_codec is not None) is other
            assert selection.shared_vocabulary


# Under load


@pytest.mark.slow
def test_requests_that_began_keep_their_version(server: Server, variant: Variant) -> None:
    """A switch under load: a reply's revision was current at some moment of its life, and its numbers are its own."""
    steps = [1, 2, 3, 4, 5, 6]
    expected = {}
    for step in steps:
        revision = server.load("teacher", f"check-{step}", variant(step)).json()["model"]["revision"]
        expected[revision] = server.kl(teacher=f"check-{step}")
    server.load("teacher", "policy", variant(1))
    stop = threading.Event()
    replies: list[tuple[float, float, str, list[float]]] = []

    def ask() -> None:
        with httpx.Client(verify=False, timeout=60) as client:
            while not stop.is_set():
                began = time.monotonic()
                reply = client.post(f"{server.url}/reward", json=BODY)
                assert reply.status_code == 200, reply.text
                found = reply.json()
                kl = found["items"][0]["token_scores"]["think"]["kl"]
                replies.append((began, time.monotonic(), found["teacher"]["revision"], kl))

    spans: list[tuple[float, float, str]] = []
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        try:
            for step in [2, 3, 4, 5, 6, 1, 2, 3]:
                server.unload("teacher", f"check-{step}")  # so that weights are really read
                began = time.monotonic()
                reply = server.load("teacher", "policy", variant(step))
                assert reply.status_code == 201
                revision = reply.json()["model"]["revision"]
                spans.append((began, time.monotonic(), revision))
                # however slowly they ask: each version is served to somebody
                while [served for _, _, served, _ in replies[-1:]] != [revision]:
                    assert not any(each.done() for each in asking), [each.exception() for each in asking if each.done()]
                    time.sleep(0.05)
        finally:
            stop.set()
        for each in asking:
            each.result()
    assert {revision for _, _, revision, _ in replies} == set(expected)
    served = [(0.0, model_revision(variant(1))), *((began, revision) for began, _, revision in spans)]
    gone = [*(ended for _, ended, _ in spans), float("inf")]
    for began, ended, revision, kl in replies:
        windows = [(start, end) for (start, each), end in zip(served, gone, strict=True) if each == revision]
        assert any(began <= end and ended >= start for start, end in windows), "it was not served at that time"
        assert kl == pytest.approx(expected[revision], abs=1e-5)


def test_loads_are_done_one_after_the_other(server: Server, variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = server.app.state.models._loader
    running_now, most = 0, 0
    load = loader.load

    def watched(*args: Any, **options: Any) -> Any:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        try:
            return load(*args, **options)
        finally:
            running_now -= 1

    monkeypatch.setattr(loader, "load", watched)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda step: server.load("teacher", f"t{step}", variant(step)), range(1, 5)))
    assert [reply.status_code for reply in replies] == [201] * 4
    assert most == 1


def test_a_version_is_freed_when_its_last_request_ends(server: Server, variant: Variant) -> None:
    registry = server.app.state.models.registry
    server.load("teacher", "policy", variant(1))
    server.kl()
    [version] = [v for v in registry.versions() if v.role == "teacher"]
    alive = weakref.ref(next(version.model.modules[0].parameters()))
    with registry.using():
        server.load("teacher", "policy", variant(2))
        states = {m["revision"]: (m["state"], m["requests"]) for m in server.models()["teachers"]}
        assert states == {model_revision(variant(1)): ("retiring", 1), model_revision(variant(2)): ("serving", 0)}
        assert alive() is not None
    assert [m["revision"] for m in server.models()["teachers"]] == [model_revision(variant(2))]
    del version
    server.kl()
    deadline = time.monotonic() + 60
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(0.1)
        gc.collect()
    assert alive() is None


def test_readiness_does_not_wait_for_a_load(server: Server, variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = server.app.state.models._loader
    entered, go = threading.Event(), threading.Event()
    load = loader.load

    def slow(*args: Any, **options: Any) -> Any:
        entered.set()
        assert go.wait(60)
        return load(*args, **options)

    monkeypatch.setattr(loader, "load", slow)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(server.load, "teacher", "policy", variant(1))
        assert entered.wait(60)
        assert request("GET", f"{server.url}/readyz").status_code == 200
        assert server.reward().status_code == 200
        go.set()
        assert loading.result().status_code == 201


def test_building_a_model_changes_no_other_threads_numbers(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers builds models under the default dtype of the whole process; here, of one thread."""
    from transformers import modeling_utils

    seen: list[torch.dtype] = []
    build_model = modeling_utils.PreTrainedModel.__init__

    def watched(self: Any, *args: Any, **options: Any) -> None:
        with ThreadPoolExecutor(1) as other:
            seen.append(other.submit(lambda: torch.where(torch.tensor([True]), 0.5, 1.0).dtype).result())
        build_model(self, *args, **options)

    monkeypatch.setattr(modeling_utils.PreTrainedModel, "__init__", watched)
    model = read_weights(golden_dir / "student", "bfloat16", torch.device("cpu"), pickles=False)
    assert seen
    assert set(seen) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.fixture
def replicated(settings: SettingsOf, golden_dir: Path, roots: list[Path]) -> Iterator[Server]:
    teacher = f"policy={golden_dir / 'teacher'}"
    yield from serve(settings(device="cpu,cpu", teacher=teacher, allowed_roots=roots, cache_s=0))


def test_replicas_give_one_score(replicated: Server, variant: Variant) -> None:
    """Two on one device share their weights; both are used."""
    assert replicated.models()["student"]["devices"] == ["cpu", "cpu"]
    replicated.load("teacher", "policy", variant(1))
    model = replicated.app.state.models.registry.default.teacher
    first, second = (next(scorer._model.parameters()) for scorer in model.scorers)
    assert len(model.scorers) == 2
    assert first.data_ptr() == second.data_ptr()
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda _: replicated.kl(), range(32)))
    for score in scores:
        assert score == pytest.approx(scores[0], abs=1e-5)


def test_a_device_that_is_not_there(settings: SettingsOf) -> None:
    from rlt_client.errors import RLTError

    for device in ("cuda:77", "abacus"):
        with pytest.raises(RLTError, match="cannot be used"), running(lambda name=device: build(settings(device=name))):
            pass


# The hub


@pytest.fixture
def hub(golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache as a download leaves it, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub" / "models--org--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("c0ffee")
    shutil.copytree(golden_dir / "teacher", cache / "snapshots" / "c0ffee")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.parent))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("allowed", [True, False])
def test_names_of_the_hub_only_where_they_are_allowed(settings: SettingsOf, allowed: bool) -> None:
    for server in serve(settings(allow_hub=allowed)):
        reply = server.load("teacher", "tiny", "org/tiny")
        assert (reply.status_code, reply.json().get("type")) == ((201, None) if allowed else (422, "path_not_allowed"))
        for source in ("org/unknown", "/etc", "a/b/c", "../x"):
            assert server.load("teacher", "x", source).status_code == 422


def test_half_precision(settings: SettingsOf, golden_dir: Path) -> None:
    """Half the memory, and scores near those of float32."""
    for server in serve(settings(teacher=str(golden_dir / "teacher"))):
        whole, exact = server.models()["student"], server.kl()
    for server in serve(settings(teacher=str(golden_dir / "teacher"), dtype="bfloat16")):
        half = server.models()["student"]
        assert (half["dtype"], half["memory_bytes"] * 2) == ("bfloat16", whole["memory_bytes"])
        assert server.kl() == pytest.approx(exact, abs=1.5)
        assert server.kl() != exact
