"""Training texts as words, each marked as learned or not: of a pre-training text only what is determined is learned."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from rlt_trainer.tiny.recipe import BaseRecipe, WarmupRecipe
from rlt_trainer.tiny.task import LABELS, MODULUS, OPERATIONS, Problem, apply, problems
from rlt_trainer.tiny.traces import mixed_trace

CLOSE, END = "#", "$"


@dataclass(frozen=True, slots=True)
class Document:
    """Words, and whether the loss counts each."""

    words: tuple[str, ...]
    learned: tuple[bool, ...]


def fact_document(rng: random.Random, length: int) -> Document:
    """Facts of one operation, `12 A +11 23 ;`: the value is learned."""
    parts = [_fact(rng, rng.choice(LABELS), rng.choice(OPERATIONS)) for _ in range(length // 5)]
    return _join(parts)


def lookup_document(rng: random.Random, length: int) -> Document:
    """A table `| A +2 F *7 |`, then its operations applied to fresh numbers: operation and value are learned."""
    size = rng.randint(3, 6)
    labels = sorted(rng.sample(LABELS, size))
    table = [(label, rng.choice(OPERATIONS)) for label in labels]
    head = ["|", *(word for entry in table for word in entry), "|"]
    parts = [_plain(head)]
    for _ in range((length - len(head)) // 5):
        label, operation = rng.choice(table)
        parts.append(_fact(rng, label, operation, looked_up=True))
    return _join(parts)


def copy_document(rng: random.Random, length: int) -> Document:
    """Random words, `|`, the same words again: the second half is learned from its second word on."""
    words = [rng.choice((str(rng.randrange(MODULUS)), rng.choice(OPERATIONS))) for _ in range((length - 1) // 2)]
    first_again = _plain(words[:1])
    rest_again = Document(tuple(words[1:]), (True,) * (len(words) - 1))
    return _join([_plain([*words, "|"]), first_again, rest_again])


def base_documents(recipe: BaseRecipe, seed: int) -> Iterator[Document]:
    """Endless pre-training documents. None holds a chain, a question, an explanation or a closing tag."""
    rng = random.Random(f"base {seed}")  # noqa: S311 - reproducible data, nothing secret
    kinds = (fact_document, lookup_document, copy_document)
    weights = (recipe.fact_share, recipe.lookup_share, recipe.copy_share)
    while True:
        [kind] = rng.choices(kinds, weights)
        yield kind(rng, recipe.document_tokens)


def teacher_document(problem: Problem, trace: str) -> Document:
    """`Q … = 17 >` then, learned, the trace and `# $`."""
    prompt = [*problem.question.split(), "=", problem.answer, ">"]
    return _prompted(prompt, [*trace.split(), CLOSE, END])


def student_document(problem: Problem, trace: str) -> Document:
    """`Q … >` then, learned, the trace, `#`, the answer and `$`."""
    prompt = [*problem.question.split(), ">"]
    return _prompted(prompt, [*trace.split(), CLOSE, problem.answer, END])


def corpus(recipe: WarmupRecipe, seed: int) -> list[tuple[Problem, str]]:
    """Training problems, none of them held out, with one mixed trace each."""
    rng = random.Random(f"corpus {seed}")  # noqa: S311 - reproducible data, nothing secret
    chosen = problems(recipe.corpus, seed, held_out=False)
    return [(problem, mixed_trace(problem, recipe.mixture, rng)) for problem in chosen]


def warmup_documents(recipe: WarmupRecipe, seed: int) -> Iterator[Document]:
    """The corpus in both formats, shuffled anew at each pass, endlessly."""
    both = [make(*pair) for pair in corpus(recipe, seed) for make in (teacher_document, student_document)]
    rng = random.Random(f"order {seed}")  # noqa: S311 - reproducible data, nothing secret
    while True:
        yield from rng.sample(both, len(both))


def _fact(rng: random.Random, label: str, operation: str, *, looked_up: bool = False) -> Document:
    value = rng.randrange(MODULUS)
    words = (str(value), label, operation, str(apply(value, operation)), ";")
    return Document(words, (False, False, looked_up, True, False))


def _plain(words: list[str]) -> Document:
    return Document(tuple(words), (False,) * len(words))


def _prompted(prompt: list[str], completion: list[str]) -> Document:
    return _join([_plain(prompt), Document(tuple(completion), (True,) * len(completion))])


def _join(parts: list[Document]) -> Document:
    words = tuple(word for part in parts for word in part.words)
    return Document(words, tuple(flag for part in parts for flag in part.learned))
