"""What the server refuses to start with, and the process as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlt_client.errors import RLTError
from rlt_local.ports import free
from rlt_reward_server.app import build
from rlt_reward_server.hosting import ModelHost
from rlt_reward_server.registry import Selection
from rlt_reward_server.settings import Settings
from rlt_service.formats import read_formats
from rlt_service.testing import running

START_S = 90.0  # torch alone takes ten on two busy cores

SettingsOf = Callable[..., Settings]

ITEM = {"question": "What is 2 times 3?", "answer": "It is 6.", "explanation": "\n\nis carry so of"}


@pytest.fixture
def student(golden_dir: Path, tmp_path: Path) -> Path:
    """A copy of the golden student, to be broken."""
    return Path(shutil.copytree(golden_dir / "student", tmp_path / "copy"))


def refusal(settings: Settings) -> str:
    with pytest.raises(RLTError) as caught, running(lambda: build(settings)):
        pass
    return str(caught.value)


def test_a_folder_that_is_not_there(settings: SettingsOf, tmp_path: Path) -> None:
    assert "no such model folder" in refusal(settings(student=str(tmp_path / "nope")))
    assert "no such model folder" in refusal(settings(teacher=str(tmp_path / "nope")))


def test_a_folder_without_model(settings: SettingsOf, tmp_path: Path) -> None:
    assert "config.json" in refusal(settings(student=str(tmp_path)))


def test_a_folder_without_weights(settings: SettingsOf, student: Path) -> None:
    (student / "model.safetensors").unlink()
    assert str(student) in refusal(settings(student=str(student)))


def test_weights_that_break_off(settings: SettingsOf, student: Path) -> None:
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert "cannot be loaded" in refusal(settings(student=str(student)))


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(settings: SettingsOf, student: Path) -> None:
    tensors = load_file(student / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, student / "model.safetensors", {"format": "pt"})
    assert "lm_head.weight" in refusal(settings(student=str(student)))


def test_a_folder_without_tokenizer(settings: SettingsOf, student: Path) -> None:
    (student / "tokenizer.json").write_text("{")
    assert "its tokenizer cannot be used" in refusal(settings(student=str(student)))
    (student / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(settings(student=str(student)))


def test_a_token_that_the_model_has_no_row_for(settings: SettingsOf, student: Path) -> None:
    """Tokenizers often know more tokens than their model: only a text that needs one of these cannot be scored."""
    shape = json.loads((student / "tokenizer.json").read_text())
    shape["added_tokens"].append({**shape["added_tokens"][0], "id": 4096, "content": "<|one_more|>"})
    (student / "tokenizer.json").write_text(json.dumps(shape))
    ids = {"token_ids": [5, 4096], "logprobs": [-1.0, -1.0], "temperature": 0.7}
    items = [ITEM, {**ITEM, "explanation": None, "teacher": ids}, {**ITEM, "explanation": "<|one_more|>"}]
    with running(lambda: build(settings(student=str(student)))) as url:
        reply = httpx.post(f"{url}/reward", json={"items": items, "spec": "ss_only"}).json()
    assert [item["status"] for item in reply["items"]] == ["scored", "score_error", "scored"]
    assert reply["items"][1]["error"]["type"] == "untokenizable"


def test_a_default_format_that_the_model_cannot_take(settings: SettingsOf, student: Path) -> None:
    (student / "chat_template.jinja").unlink()
    assert "chat template" in refusal(settings(student=str(student), formats=None, format="stratos"))


def test_own_formats_that_the_model_cannot_take(settings: SettingsOf, student: Path) -> None:
    (student / "chat_template.jinja").unlink()
    assert "'golden'" in refusal(settings(student=str(student), format="plain"))


def test_formats_that_are_not_there(settings: SettingsOf, tmp_path: Path) -> None:
    assert "no such folder" in refusal(settings(formats=tmp_path / "nope"))
    assert "nope" in refusal(settings(format="nope"))


def served(settings: Settings) -> Selection:
    return asyncio.run(ModelHost.start(settings, *read_formats(settings.formats, settings.format))).registry.default


def test_one_folder_for_both_is_loaded_once(settings: SettingsOf, golden_dir: Path) -> None:
    selection = served(settings(teacher=str(golden_dir / "." / "student")))
    assert selection.teacher
    assert selection.teacher.scorers is selection.student.scorers


def test_models_are_called_by_their_folder(settings: SettingsOf, student: Path) -> None:
    assert served(settings(student=f"{student}/")).student.ref.name == "copy"


WORDS = [*map(str, range(61)), "+1", "+2", "+5", "+11", "+23", "*2", "*3", "*7", *"ABCDEFGHQ=>#$;!~|"]


@pytest.fixture(scope="module")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of the miniature: a word-level tokenizer and no chat template."""
    folder = tmp_path_factory.mktemp("word-level")
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="$")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def word_url(settings: SettingsOf, word_model: Path) -> Iterator[str]:
    given = {"student": str(word_model), "teacher": str(word_model), "formats": None, "format": "mini"}
    with running(lambda: build(settings(**given))) as url:
        yield url


MINI = {"question": "Q 36 A +5 B *3", "answer": "17", "explanation": "36 A +5 41 B *3 1"}


def test_the_miniature_against_arithmetic_by_hand(word_url: str, word_model: Path) -> None:
    [score] = httpx.post(f"{word_url}/reward", json={"items": [MINI], "detail": "tokens"}).json()["items"]
    model = Qwen2ForCausalLM.from_pretrained(word_model, dtype=torch.float32)

    def logprobs(text: str) -> list[float]:
        ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
        with torch.inference_mode():
            values = (model(ids).logits[0] / 0.7).log_softmax(-1)
        return values[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()

    think = MINI["explanation"]
    student = logprobs(f"{MINI['question']} > {think} # 17 $")
    teacher = logprobs(f"{MINI['question']} = 17 > {think}")
    n_prompt, n_think = len(f"{MINI['question']} >".split()), len(think.split())
    kl = [t - s for t, s in zip(teacher[-n_think:], student[n_prompt - 1 :], strict=False)]
    ss = student[-2]  # the answer, one token, before the end of turn
    expected = 1.01 * ss - 3 * (sum(kl) / len(kl) + 0.01 * max(kl))
    assert score["token_scores"]["think"]["kl"] == pytest.approx(kl, abs=1e-4)
    assert score["token_scores"]["answer"]["logprobs"] == pytest.approx([ss], abs=1e-4)
    assert score["reward"] == pytest.approx(expected, abs=1e-4)


def test_sent_ids_of_a_word_level_tokenizer(word_url: str) -> None:
    """Its decoded text has lost the white space: ids and a text agree by their words."""
    ids = [WORDS.index(word) for word in f"{MINI['explanation']} #".split()]
    teacher = {"token_ids": ids, "logprobs": [-1.0] * len(ids), "temperature": 0.7}
    items = [{**MINI, "teacher": teacher}, {**MINI, "explanation": "36  A +5\n41 B *3 1", "teacher": teacher}, MINI]
    sent, spaced, hosted = httpx.post(f"{word_url}/reward", json={"items": items}).json()["items"]
    assert sent["reward"] == spaced["reward"]
    assert sent["components"]["r_ss"] == pytest.approx(hosted["components"]["r_ss"], abs=1e-5)


def test_a_word_outside_the_vocabulary_is_untokenizable(word_url: str) -> None:
    [score] = httpx.post(f"{word_url}/reward", json={"items": [{**MINI, "explanation": "36 plus 5"}]}).json()["items"]
    assert score["error"]["type"] == "untokenizable"


def test_formats_that_the_word_level_model_cannot_take_are_listed_and_refused(word_url: str) -> None:
    listed = {entry["name"]: entry for entry in httpx.get(f"{word_url}/formats").json()["formats"]}
    assert listed["mini"]["available"]
    assert not listed["stratos"]["available"]
    assert listed["stratos"]["reason"]
    response = httpx.post(f"{word_url}/reward", json={"items": [MINI], "format": "stratos"})
    assert (response.status_code, response.json()["type"]) == (422, "format_unavailable")
    assert response.json()["errors"][0]["pointer"] == "/format"


@pytest.mark.parametrize("device", ["cpu,cpu", "cuda:1"])
def test_parts_and_replicas_exclude_each_other(settings: SettingsOf, device: str) -> None:
    with pytest.raises(ValueError, match="tensor_parallel"):
        settings(device=device, tensor_parallel=2)


# The process


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "rlt_reward_server", *flags]


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, rlt_reward_server.app, rlt_reward_server.settings, rlt_reward_server.__main__ as m\n"
        "sys.argv = ['rlt-reward-server', '--help']\n"
        "try: m.main()\n"
        "finally: assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("student", "teacher", "formats", "format", "preset", "device", "dtype", "max-queue"):
        assert f"--{name} " in done.stdout
    assert "RLT_REWARD_STUDENT" in done.stdout


@pytest.mark.parametrize("flags", [[], ["--student", "x", "--preset", "nope"], ["--student", "x", "--port", "high"]])
def test_flags_that_are_wrong_end_with_one_line(flags: list[str]) -> None:
    done = subprocess.run(command(*flags), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("rlt-reward-server: error: --")


def test_what_a_user_can_mend_ends_with_one_line(golden_dir: Path, tmp_path: Path) -> None:
    student = str(golden_dir / "student")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for flags, words in (
            (["--student", student, "--port", str(taken.getsockname()[1])], "cannot listen"),
            (["--student", str(tmp_path / "nope"), "--port", "0"], "no such model folder"),
            (["--student", student, "--host", "0.0.0.0"], "no keys"),
        ):
            done = subprocess.run(command(*flags), capture_output=True, text=True, timeout=60)
            assert done.returncode == 1
            assert words in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr


def test_a_life_from_start_to_sigterm(golden_dir: Path, formats_dir: Path, tmp_path: Path) -> None:
    """Settings from the environment; JSON lines only; the queue is drained; exit code 0."""
    [port] = free()
    environment = os.environ | {
        "RLT_REWARD_STUDENT": str(golden_dir / "student"),
        "RLT_REWARD_FORMATS": str(formats_dir),
        "RLT_REWARD_FORMAT": "golden",
        "RLT_REWARD_PRESET": "ss_only",
        "OMP_NUM_THREADS": "1",
    }
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command("--port", str(port)), env=environment, stderr=stderr, stdout=stderr)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        item = {"question": "What is 2 times 3?", "answer": "6", "explanation": "\n\nis carry"}
        reply: Any = httpx.post(f"http://127.0.0.1:{port}/reward", json={"items": [item]}).json()
        assert reply["spec"]["preset"] == "ss_only"
        assert reply["items"][0]["status"] == "scored"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert {"listening", "model loaded", "probe scored", "request"} <= set(events)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(f"{url}/readyz", timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail("not ready in time")
