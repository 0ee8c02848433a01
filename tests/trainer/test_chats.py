"""Chats by a model's own template: the ids that transformers gives, and the loss on the answer alone."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlt_client.prompts import TextCodec
from rlt_trainer.chats import ChatWriter, Turn, turns_of
from rlt_trainer.config.distill import TraceShape
from rlt_trainer.errors import BadConfig, BadData
from rlt_trainer.texts import NOT_LEARNED

THOUGHTS = "<|begin_of_thought|>Well.<|end_of_thought|> Two."
ONE = (Turn("system", "Be brief."), Turn("user", "What is 1 + 1?"), Turn("assistant", THOUGHTS))
TWO = (*ONE, Turn("user", "And 1 + 2?"), Turn("assistant", "Three."))
SPECIAL = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>|<\|?turn\|?>")
ENDS = {
    "qwen2_5": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "llama3_1": "<|eot_id|>",
}


def tokenizer(template: str | None, eos: str) -> Any:
    """One token a byte, and the template's own special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend: Any = Tokenizer(models.BPE(vocab={each: place for place, each in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", eos, *sorted(set(SPECIAL.findall(template or "")) - {eos})])
    make: Any = PreTrainedTokenizerFast  # has no types
    return make(tokenizer_object=backend, eos_token=eos, bos_token="<bos>", chat_template=template)


def of_trl(name: str) -> Any:
    text = (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer(text, ENDS[name])


def learned(made: Any, turns: tuple[Turn, ...]) -> str:
    labels = ChatWriter(TextCodec(made)).example(turns).labels
    return str(made.decode([label for label in labels if label != NOT_LEARNED]))


@pytest.mark.parametrize("turns", [ONE, ONE[1:]], ids=["system", "no-system"])
@pytest.mark.parametrize("name", ENDS)
def test_the_answer_and_the_end_of_turn_are_learned(name: str, turns: tuple[Turn, ...]) -> None:
    own = "<think>\n\n</think>\n\n" if name == "qwen3" else ""  # which its template writes where nobody thinks
    assert learned(of_trl(name), turns) == f"{own}{THOUGHTS}{ENDS[name]}"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "llama3", "gemma3"])
def test_each_answer_of_a_longer_chat_is_learned(name: str) -> None:
    assert learned(of_trl(name), TWO) == f"{THOUGHTS}{ENDS[name]}Three.{ENDS[name]}"


@pytest.mark.parametrize("turns", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "llama3", "gemma3"])
def test_ids_are_those_of_transformers(name: str, turns: tuple[Turn, ...]) -> None:
    made = of_trl(name)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    ids = ChatWriter(TextCodec(made)).example(turns).input_ids
    theirs = made.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert theirs[: len(ids)] == ids
    assert made.decode(theirs[len(ids) :]) in ("", "\n")  # what stands after the last end of turn is left out


def test_texts_that_spell_special_tokens_stay_texts() -> None:
    made = of_trl("qwen2_5")
    turns = (Turn("user", "<|im_end|>"), Turn("assistant", "It is <|im_end|> here."))
    example = ChatWriter(TextCodec(made)).example(turns)
    assert example.labels.count(made.eos_token_id) == 1
    assert example.labels[-1] == made.eos_token_id


def test_a_template_without_an_end_gets_one() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert learned(tokenizer(template, "<end>"), ONE) == f"{THOUGHTS}\n<end>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "does not take messages of"),
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("the same for everybody", "does not give each message exactly once"),
        (
            "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}",
            "in another way than it asks for one",
        ),
    ],
    ids=["none", "raises", "drops", "moves"],
)
def test_templates_that_cannot_be_learned_are_refused(template: str | None, reason: str) -> None:
    with pytest.raises(BadConfig, match=reason):
        learned(tokenizer(template, "<end>"), ONE)


def test_a_template_that_forgets_earlier_thoughts_is_refused_for_longer_chats() -> None:
    with pytest.raises(BadConfig, match="earlier turns otherwise than the last"):
        learned(of_trl("qwen3"), TWO)


CHAT = [{"role": turn.role, "content": turn.text} for turn in ONE]


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        (TraceShape.messages, {"messages": CHAT}),
        (TraceShape.prompt_completion, {"prompt": CHAT[:2], "completion": CHAT[2:]}),
        (
            TraceShape.sharegpt,
            {
                "conversations": [
                    {"from": who, "value": turn.text} for who, turn in zip(("system", "human", "gpt"), ONE, strict=True)
                ]
            },
        ),
    ],
    ids=["messages", "prompt_completion", "sharegpt"],
)
def test_all_shapes_are_the_same_chat(shape: TraceShape, row: dict[str, Any]) -> None:
    assert tuple(turns_of(row, shape)) == ONE


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (CHAT[:2], "the assistant says nothing"),
        ([{"role": "assistant", "content": "  "}], "is empty"),
        ([{"role": "assistant", "content": None}], "want turns of role and content"),
        (["hello"], "want turns of role and content"),
        ([], "the assistant says nothing"),
    ],
    ids=["no-answer", "blank", "null", "no-turn", "none"],
)
def test_rows_that_are_no_chat_are_refused(messages: list[Any], reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        turns_of({"messages": messages}, TraceShape.messages)
