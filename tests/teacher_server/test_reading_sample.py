"""One whole sample: how it ended, and what a reader should know of it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlt_client.formats import Format, shipped_formats
from rlt_client.prompts import TextCodec, content, literal, read_completion
from rlt_client.schemas.common import GenStatus
from rlt_client.schemas.explain import ExplanationFlag
from rlt_client.schemas.reward import RewardItem, TeacherTokens
from rlt_client.tags import breaking_tags
from rlt_reward_server.reading import flags, read_item
from rlt_teacher_server.reading import Reading, read_sample
from rlt_trainer.tiny import good_trace, leaking_trace, make_tokenizer, problems

FORMATS = shipped_formats()
STRATOS, PLAIN, MINI = FORMATS["stratos"], FORMATS["plain"], FORMATS["mini"]
END = "<|end_of_explanation|>"


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|im_end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(["the sum of the terms is even .<|"] * 4, trainer)
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>"))  # type: ignore[no-untyped-call]  # untyped in transformers


@pytest.fixture(scope="module")
def words() -> TextCodec:
    return TextCodec(make_tokenizer())


def read(codec: TextCodec, format: Format, text: str, finish: str = "stop", *, end_of_turn: bool = False) -> Reading:
    ids = codec.encode([content(text)]).ids
    if end_of_turn:
        ids += codec.encode([literal("<|im_end|>")]).ids
    return read_sample(codec, format, ids, finish)


def test_a_complete_explanation(codec: TextCodec) -> None:
    found = read(codec, STRATOS, f"so it is 4{END}")
    assert found == Reading("\n\nso it is 4", f"so it is 4{END}", True, GenStatus.complete, [], [])


def test_what_follows_the_tag_is_no_part_of_it(codec: TextCodec) -> None:
    found = read(codec, STRATOS, f"so it is 4{END} the given solution {END}", end_of_turn=True)
    assert found.text == "\n\nso it is 4"
    assert found.completion.endswith(f"{END}<|im_end|>")
    assert (found.gen_status, found.flags, found.leaks) == (GenStatus.complete, [], [])


@pytest.mark.parametrize(
    ("finish", "status"),
    [("length", GenStatus.truncated), ("stop", GenStatus.malformed), ("abort", GenStatus.malformed)],
)
def test_an_unclosed_think_section_is_no_explanation(codec: TextCodec, finish: str, status: GenStatus) -> None:
    found = read(codec, STRATOS, "so it is 4, and the answer", finish, end_of_turn=finish == "stop")
    assert (found.text, found.closed, found.gen_status) == (None, False, status)
    assert found.completion == "so it is 4, and the answer"


def test_a_tag_at_the_very_end_of_the_budget_still_closes(codec: TextCodec) -> None:
    assert read(codec, STRATOS, f"so{END}", "length").gen_status is GenStatus.complete


@pytest.mark.parametrize(
    "tag",
    [*STRATOS.delimiters[1:], "<|im_end|>"],
)
def test_a_tag_inside_makes_it_malformed(codec: TextCodec, tag: str) -> None:
    found = read(codec, STRATOS, f"so {tag} it is 4{END}")
    assert (found.text, found.closed, found.gen_status) == (None, True, GenStatus.malformed)
    assert found.flags == [ExplanationFlag.stray_tags]
    assert found.completion == f"so {tag} it is 4{END}"


def test_words_that_a_format_uses_as_tags_are_ordinary_text(codec: TextCodec) -> None:
    """`Solution:` is a tag of format plain; a student's text with it reads back as it was written."""
    text = "We try 3. Solution: it fits."
    found = read(codec, PLAIN, f"{text}\n[END]")
    assert (found.text, found.gen_status) == (f"\n{text}", GenStatus.complete)
    assert found.flags == [ExplanationFlag.stray_tags]  # the reward server's delimiter_in_explanation
    student = PLAIN.student
    document = student.open + text + student.close + student.answer.replace("{answer}", "3")
    assert PLAIN.parse(document) == (f"{text}\n", "3")


def test_the_tag_that_ends_the_students_thoughts_is_never_ordinary(codec: TextCodec) -> None:
    student = PLAIN.student.model_copy(update={"close": "\nDone:\n"})
    format = PLAIN.model_copy(update={"student": student})
    assert read(codec, format, "Done: not yet\n[END]").gen_status is GenStatus.malformed
    assert read(codec, format, "done, not yet\n[END]").gen_status is GenStatus.complete


def test_which_tags_break_an_explanation(codec: TextCodec, words: TextCodec) -> None:
    assert set(breaking_tags(codec, STRATOS)) == {*STRATOS.delimiters, "<|im_end|>"}
    assert set(breaking_tags(codec, FORMATS["deepseek"])) == {*FORMATS["deepseek"].delimiters, "<|im_end|>"}
    assert set(breaking_tags(codec, PLAIN)) == {"[END]", "<|im_end|>"}
    assert set(breaking_tags(words, MINI)) == {"#", "<pad>"}


def test_one_character_tags_are_ordinary_text(words: TextCodec) -> None:
    found = read(words, MINI, "36 > 41 #")
    assert (found.gen_status, found.text) == (GenStatus.complete, "36 > 41 ")
    assert found.flags == [ExplanationFlag.stray_tags]


TEXTS = {
    "complete": f"so it is 4{END}",
    "empty": END,
    "blank": f" \n{END}",
    "unclosed": "so it is 4",
    "unclosed and blank": " ",
    "a tag": f"so <|end_of_thought|>{END}",
    "a special token": f"so <|im_end|> it is{END}",
    "a tag, unclosed": "so <|begin_of_solution|>4",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["stratos", "plain"])
def test_flags_say_what_the_reward_servers_say(codec: TextCodec, name: str, text: str) -> None:
    format = FORMATS[name]
    ids = codec.encode([content(text.replace(END, format.teacher.close))]).ids
    found = read_sample(codec, format, ids, "stop")
    sent = TeacherTokens(token_ids=ids, logprobs=[-1.0] * len(ids), temperature=0.7)
    scored = read_item(codec, format, RewardItem(question="q", answer="a", teacher=sent))
    n_think = 0 if scored.blank else 1
    said = flags(codec, format, scored, n_think)
    assert (ExplanationFlag.stray_tags in found.flags) == ("delimiter_in_explanation" in said)
    assert (ExplanationFlag.empty in found.flags) == ("empty_explanation" in said)
    assert found.closed == ("closing_tag_missing" not in said)
    assert found.text in (None, scored.text)


def test_an_empty_explanation_is_complete(codec: TextCodec) -> None:
    found = read(codec, STRATOS, END)
    assert (found.text, found.gen_status, found.flags) == ("\n\n", GenStatus.complete, [ExplanationFlag.empty])


def test_a_sample_that_goes_round_in_circles(codec: TextCodec) -> None:
    cut_off = read(codec, STRATOS, "so it is 4. " + "Wait, no. " * 60, "length")
    assert (cut_off.gen_status, cut_off.flags) == (GenStatus.truncated, [ExplanationFlag.repetition])
    closed = read(codec, STRATOS, "Wait, no. " * 60 + END, end_of_turn=True)
    assert (closed.gen_status, closed.flags) == (GenStatus.complete, [ExplanationFlag.repetition])


def test_leaks_are_places_of_the_text_or_of_the_completion(codec: TextCodec) -> None:
    complete = read(codec, STRATOS, f"by the given solution, 4{END}")
    unclosed = read(codec, STRATOS, "by the given solution, 4", "length")
    for found, text in ((complete, complete.text), (unclosed, unclosed.completion)):
        assert found.flags == [ExplanationFlag.refers_to_given_solution]
        [leak] = found.leaks
        assert text is not None
        assert text[leak.start : leak.end] == leak.text == "given solution"


def test_traces_of_the_tiny_model(words: TextCodec) -> None:
    for problem in problems(30, seed=4):
        good, leak = (read(words, MINI, f"{trace(problem)}#") for trace in (good_trace, leaking_trace))
        assert (good.gen_status, good.flags) == (GenStatus.complete, [])
        assert (leak.gen_status, leak.flags) == (GenStatus.complete, [ExplanationFlag.refers_to_given_solution])


def test_it_reads_what_the_reward_is_computed_of(codec: TextCodec) -> None:
    """The same text as `rlt_client.prompts.read_completion`, which the reward server uses."""
    for text in TEXTS.values():
        for ids in (codec.encode([content(text)]).ids, codec.encode([content(text), literal("<|im_end|>")]).ids):
            found, reference = read_sample(codec, STRATOS, ids, "stop"), read_completion(codec, STRATOS, ids)
            assert found.closed == reference.closed
            if found.text is None:
                assert STRATOS.teacher.held + found.completion.partition(END)[0] == reference.text
            else:
                assert found.text == reference.text
