"""Evaluations with samples from a server that speaks OpenAI's completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from plugins.engine import SERVED_NAME

from rlt_client import _http
from rlt_client.prompts import TextCodec
from rlt_local.ports import free
from rlt_trainer.config import EvaluateConfig
from rlt_trainer.errors import BadConfig, BadData, TrainingError
from rlt_trainer.evaluate.run import run
from rlt_trainer.tiny import Problem, good_trace, problems

COUNT = 10
KEY = "opensesame"
PATIENCE_S = 60
Make = Callable[..., EvaluateConfig]


class Solver:
    """A student that is always right, on a port, with what vLLM's replies hold: ids, the stop string kept. It keeps no
    property of sampling."""

    def __init__(self, folder: Path) -> None:
        self.codec = TextCodec.of_folder(folder)
        self.models: list[dict[str, Any]] = [{"id": "tiny", "root": "/models/tiny", "max_model_len": 256}]
        self.asked: list[dict[str, Any]] = []
        self.answers: list[tuple[int, dict[str, Any]]] = []
        """Given first, in the place of its own."""
        self.ids = True
        self.until = COUNT**9
        """Requests that it lives for."""
        self.keys: set[str | None] = set()
        self._lock = threading.Lock()
        self._port = free()[0]
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]] | None:
        """None: it has died."""
        if path == "/v1/models":
            return 200, {"object": "list", "data": self.models}
        assert body is not None
        with self._lock:
            if len(self.asked) >= self.until:
                return None
            self.asked.append(body)
            if self.answers:
                return self.answers.pop(0)
        return 200, self._solved(body)

    def _solved(self, body: dict[str, Any]) -> dict[str, Any]:
        words = self.codec.decode(body["prompt"]).split()
        problem = Problem(int(words[1]), tuple(words[3:-1:2]))
        text = f"{good_trace(problem)}# {problem.answer} $"
        ids = self.codec.tokenizer.convert_tokens_to_ids(text.split())
        finish = "length" if len(ids) > body["max_tokens"] else "stop"
        ids = ids[: body["max_tokens"]]
        if self.ids:
            choice = {"text": self.codec.decode(ids), "token_ids": ids}
        else:
            choice = {"text": self.codec.decode(ids).removesuffix("$")}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return {"choices": [{"index": 0, "finish_reason": finish, **choice}], "usage": usage}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        solver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                solver.keys.add(self.headers.get("authorization"))
                reply = solver.reply(self.path, body)
                if reply is None:
                    self.close_connection = True
                    return
                content = json.dumps(reply[1]).encode()
                self.send_response(reply[0])
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                return None

        return Handler


@pytest.fixture
def solver(tiny_warmup: Path) -> Iterator[Solver]:
    one = Solver(tiny_warmup)
    one.start()
    yield one
    one.stop()


@pytest.fixture
def make(tmp_path: Path, tiny_warmup: Path, solver: Solver) -> Make:
    file = tmp_path / "questions.jsonl"
    rows = [{"question": each.question, "answer": each.answer} for each in problems(COUNT, seed=6)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def config(engine: dict[str, Any] | None = None, **changed: Any) -> EvaluateConfig:
        told: dict[str, Any] = {
            "output": tmp_path / "found",
            "model": {"name": str(tiny_warmup)},
            "data": {"path": str(file)},
            "texts": {"format": "mini"},
            "match": "exact",
            "max_new_tokens": 40,
            "engine": {"url": solver.url, "patience_s": PATIENCE_S, "concurrency": 4} | (engine or {}),
        }
        return EvaluateConfig(**(told | changed))

    return config


def found(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
def test_right_samples_are_right(make: Make, solver: Solver, ids: bool) -> None:
    solver.ids = ids
    results = found(run(make()))
    assert results["data"]["pass_at"]["1"] == {"value": 1, "stderr": 0}
    assert results["data"]["tokens_per_sample"] == 16
    assert results["model"]["served_as"] == "tiny"
    assert results["model"]["served_from"] == "/models/tiny"


def test_everything_that_shapes_a_sample_is_said(make: Make, solver: Solver) -> None:
    run(make(samples=3, ks=[3], temperature=0.7, top_p=0.9))
    assert len(solver.asked) == 3 * COUNT == len({body["seed"] for body in solver.asked})
    prompts = {solver.codec.decode(body["prompt"]) for body in solver.asked}
    assert prompts == {f"{each.question} >" for each in problems(COUNT, seed=6)}
    shaping = {name: value for name, value in solver.asked[0].items() if name not in ("prompt", "seed")}
    assert shaping == {
        "model": "tiny",
        "max_tokens": 40,
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["$"],
        "n": 1,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "return_token_ids": True,
    }


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
def test_truncated_samples_have_no_answer(make: Make, solver: Solver, ids: bool) -> None:
    solver.ids = ids
    counts = found(run(make(max_new_tokens=15)))["data"]["counts"]
    assert (counts["truncated"], counts["no_answer"], counts["right"]) == (COUNT, COUNT, 0)


def test_the_server_says_how_long_a_context_is(make: Make, solver: Solver) -> None:
    solver.models[0]["max_model_len"] = 20
    run(make())
    assert {len(body["prompt"]) + body["max_tokens"] for body in solver.asked} == {20}
    solver.models[0]["max_model_len"] = 10
    with pytest.raises(BadData, match="no room"):
        run(make(output=make().output.with_name("short")))


def test_the_key_comes_from_the_environment(make: Make, solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadConfig, match="STUDENT_KEY holds no key"):
        run(make({"key_env": "STUDENT_KEY"}))
    monkeypatch.setenv("STUDENT_KEY", KEY)
    folder = run(make({"key_env": "STUDENT_KEY"}))
    assert solver.keys == {f"Bearer {KEY}"}
    assert KEY not in "".join(file.read_text() for file in folder.glob("*.json*"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_not_well_is_asked_again(make: Make, solver: Solver, status: int) -> None:
    solver.answers = [(status, {"error": {"message": "EngineCore encountered an issue"}})] * 3
    assert found(run(make()))["data"]["pass_at"]["1"]["value"] == 1
    assert len(solver.asked) == COUNT + 3


def test_a_refusal_ends_the_evaluation_with_the_servers_words(make: Make, solver: Solver) -> None:
    solver.answers = [(400, {"error": {"message": "prompt is too long"}})]
    with pytest.raises(TrainingError, match="prompt is too long"):
        run(make({"concurrency": 1}))


def test_an_end_for_no_reason_is_no_sample(make: Make, solver: Solver) -> None:
    solver.answers = [(200, {"choices": [{"text": "", "token_ids": [], "finish_reason": "abort"}]})]
    with pytest.raises(TrainingError, match="abort"):
        run(make({"concurrency": 1}))


def test_an_evaluation_whose_server_died_goes_on_later(
    make: Make, solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver.until = 6
    with monkeypatch.context() as patched:
        patched.setattr(_http, "FIRST_PAUSE", 3.0 * PATIENCE_S)  # its patience ends with the first call that fails
        with pytest.raises(TrainingError, match="6 of 10 samples are there, and the same command goes on"):
            run(make({"concurrency": 1}))
    assert not (make().output / "results.json").exists()
    asked = len(solver.asked)
    solver.until = COUNT**9
    results = found(run(make()))
    assert results["data"]["pass_at"]["1"]["value"] == 1
    assert len(solver.asked) - asked == COUNT - 6
    rows = pd.read_parquet(make().output / "samples.parquet")
    assert list(rows.question) == [each.question for each in problems(COUNT, seed=6)]


def test_a_server_that_is_started_anew_is_waited_for(make: Make, solver: Solver) -> None:
    solver.stop()
    timer = threading.Timer(1.5, solver.start)
    timer.start()
    assert found(run(make()))["data"]["pass_at"]["1"]["value"] == 1


def test_the_model_is_found_by_name_or_alone(make: Make, solver: Solver, tiny_warmup: Path) -> None:
    solver.models = [{"id": "other"}, {"id": "tiny"}]
    with pytest.raises(BadConfig, match=r"engine\.model") as refused:
        run(make())
    assert "other, tiny" in str(refused.value)
    run(make({"model": "tiny"}))
    solver.models = [{"id": "other"}, {"id": str(tiny_warmup)}]
    run(make(output=make().output.with_name("by name")))
    assert {body["model"] for body in solver.asked} == {"tiny", str(tiny_warmup)}
    with pytest.raises(BadConfig, match="no model 'tiny'"):
        run(make({"model": "tiny"}))


@pytest.mark.slow  # vLLM starts for it
@pytest.mark.engine
def test_vllm_gives_the_samples_of_transformers(make: Make, vllm_engine: str, tmp_path: Path) -> None:
    """Greedily, on a model whose float32 logits agree to 1e-5."""
    by_vllm = run(make({"url": vllm_engine, "model": SERVED_NAME}, output=tmp_path / "vllm"))
    local = make(output=tmp_path / "local", cpu=True).model_copy(update={"engine": None})
    local = local.model_copy(update={"model": local.model.model_copy(update={"dtype": "float32"})})
    columns = ["question", "completion", "given", "right", "tokens", "truncated"]
    one, other = (pd.read_parquet(folder / "samples.parquet")[columns] for folder in (by_vllm, run(local)))
    assert one.equals(other)
