"""Formats as data."""

import pytest

from rlt_client.formats import Format, FormatError, load_format, load_formats, shipped_formats

GOOD = """
name = "own"
version = "1"
[teacher]
prefill = "<s>{answer}</s><e>"
close = "</e>"
[student]
open = "<t>"
close = "</t>"
answer = "<s>{answer}</s>"
"""


def test_shipped_formats():
    assert set(shipped_formats()) == {"stratos", "deepseek", "plain", "mini"}


def test_the_tags_of_the_paper():
    stratos = shipped_formats()["stratos"]
    assert stratos.teacher.prefill == (
        "<|begin_of_solution|>{answer}<|end_of_solution|>\n\n<|begin_of_explanation|>\n\n"
    )
    assert stratos.student.answer == "\n\n<|begin_of_solution|>{answer}<|end_of_solution|>"


def test_each_tag_is_a_delimiter_of_its_own():
    found = {name: set(format.delimiters) for name, format in shipped_formats().items()}
    tags = {f"<|{edge}_of_{part}|>" for edge in ("begin", "end") for part in ("explanation", "thought", "solution")}
    assert found == {
        "stratos": tags,
        "deepseek": {"<explanation>", "</explanation>", "</solution>", "<think>", "</think>"},
        "plain": {"How to find it:", "[END]", "Thoughts:", "Solution:"},
        "mini": {">", "#", "$"},
    }


def test_the_hash_names_the_shape_of_the_prompt_and_nothing_else():
    stratos = shipped_formats()["stratos"]
    renamed = stratos.model_copy(update={"name": "other", "version": "2"})
    moved = stratos.model_copy(update={"teacher": stratos.teacher.model_copy(update={"held": "\n"})})
    fresh = Format.model_validate(renamed.model_dump())
    assert fresh.hash == stratos.hash
    assert Format.model_validate(moved.model_dump()).hash != stratos.hash


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('close = "</e>"', 'close = ""'), "teacher.close"),
        (('prefill = "<s>{answer}</s><e>"', 'prefill = "<e>"'), "the teacher must be shown {answer}"),
        (('open = "<t>"', 'open = "<t>{answer}"'), "nowhere else on the student's side"),
        (('answer = "<s>{answer}</s>"', 'answer = "<s></s>"'), "exactly once"),
        (('answer = "<s>{answer}</s>"', 'answer = "{answer}{answer}"'), "exactly once"),
        (('close = "</e>"', 'close = "</e>"\nheld = "x"'), "must end with teacher.held"),
        (('version = "1"', 'version = "1"\ncolour = "red"'), "colour"),
        (('name = "own"', 'name = "../own"'), "name"),
        (("[teacher]", "[teacher"), "own.toml"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, change, complaint):
    assert change[0] in GOOD
    path = tmp_path / "own.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(FormatError) as caught:
        load_format(path)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


def test_own_formats_join_the_shipped_ones(tmp_path):
    (tmp_path / "own.toml").write_text(GOOD)
    assert {"own", "stratos"} <= set(load_formats(tmp_path))


def test_a_folder_that_is_missing_or_empty_or_names_twice(tmp_path):
    with pytest.raises(FormatError, match="no such folder"):
        load_formats(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"no \*\.toml"):
        load_formats(tmp_path)
    for file in "ab":
        (tmp_path / f"{file}.toml").write_text(GOOD)
    with pytest.raises(FormatError, match="has the name 'own' too"):
        load_formats(tmp_path)


TRACES = {
    "stratos": "<|begin_of_thought|>\n\nfirst, then\n\n<|end_of_thought|>"
    "\n\n<|begin_of_solution|>\\boxed{4}<|end_of_solution|>",
    "deepseek": "<think>\n\nfirst, then\n\n</think>\n\n\\boxed{4}",
    "plain": "Thoughts:\n\nfirst, then\n\n\n[END]\nSolution: \\boxed{4}\n",
    "mini": " > \n\nfirst, then\n\n # \\boxed{4} $",
}


@pytest.mark.parametrize("name", TRACES)
def test_parse_takes_a_tagged_trace_apart(name):
    explanation, answer = shipped_formats()[name].parse(TRACES[name])
    assert (explanation.strip(), answer) == ("first, then", "\\boxed{4}")


@pytest.mark.parametrize("name", TRACES)
def test_parse_is_the_inverse_of_writing(name):
    student = shipped_formats()[name].student
    text = student.open + "\nthink\n" + student.close + student.answer.replace("{answer}", "42")
    explanation, answer = shipped_formats()[name].parse(text)
    assert (explanation.strip(), answer) == ("think", "42")


@pytest.mark.parametrize(
    "text",
    [
        "no tags at all",
        "<|begin_of_thought|> never closed <|begin_of_solution|>4<|end_of_solution|>",
        "<|begin_of_thought|>x<|end_of_thought|> 4",
        "<|begin_of_thought|>x<|end_of_thought|><|begin_of_solution|>4",
        "<|begin_of_thought|>x<|end_of_thought|><|begin_of_solution|> <|end_of_solution|>",
    ],
)
def test_parse_refuses_what_is_not_of_the_format(text):
    with pytest.raises(FormatError):
        shipped_formats()["stratos"].parse(text)
