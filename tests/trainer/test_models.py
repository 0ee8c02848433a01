"""Models and tokenizers by their names on the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plugins.hub import FIRST, SECOND, Hub

from rlt_client.prompts import TextCodec
from rlt_trainer.config.sections import Model
from rlt_trainer.errors import BadConfig
from rlt_trainer.models import load_codec

CHAT = [{"role": "user", "content": "What is 2 + 2?"}]
NAMED = Model(name="org/model")


@pytest.fixture
def chatting(hub: Hub) -> Hub:
    """A model whose chat template is a file of its own."""
    folder = Path(__file__).parents[1] / "reward_server" / "golden" / "teacher"
    hub.files |= {file.name: file.read_bytes() for file in folder.iterdir()}
    assert "chat_template" not in json.loads(hub.files["tokenizer_config.json"])
    return hub


def said(codec: TextCodec) -> str:
    return str(codec.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))


def test_a_chat_template_of_its_own_comes_with_the_tokenizer(chatting: Hub) -> None:
    assert "What is 2 + 2?" in said(load_codec(NAMED))
    fetched = {request.rpartition("/")[2] for request in chatting.requests if request.startswith("GET /org/model/")}
    assert fetched == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_a_model_without_one_needs_none(chatting: Hub) -> None:
    del chatting.files["chat_template.jinja"]
    assert load_codec(NAMED).tokenizer.chat_template is None


def test_templates_of_other_uses_come_too(chatting: Hub) -> None:
    chatting.files["additional_chat_templates/tools.jinja"] = b"with tools"
    assert load_codec(NAMED).tokenizer.get_chat_template("tools") == "with tools"


def test_special_tokens_of_an_older_model_are_found(chatting: Hub) -> None:
    """They stood in a file of their own, before `added_tokens_decoder`."""
    told = json.loads(chatting.files["tokenizer_config.json"])
    for name in ("eos_token", "added_tokens_decoder"):
        told.pop(name, None)
    eos = load_codec(Model(name="org/model", revision=FIRST)).tokenizer.eos_token
    chatting.files["tokenizer_config.json"] = json.dumps(told).encode()
    chatting.files["special_tokens_map.json"] = json.dumps({"eos_token": eos}).encode()
    chatting.main = SECOND
    assert load_codec(NAMED).tokenizer.eos_token == eos


def test_what_was_fetched_is_found_without_a_network(chatting: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = said(load_codec(NAMED))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    chatting.requests.clear()
    assert said(load_codec(NAMED)) == before
    assert not chatting.requests


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("offline", [False, True])
def test_a_name_that_is_nowhere_is_told_in_one_line(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(BadConfig, match=r"^the tokenizer of nobody/nothing cannot be loaded: [^\n]+$"):
        load_codec(Model(name="nobody/nothing"))
