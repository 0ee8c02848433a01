"""Texts that the base of the parts task is trained on: only what is determined is learned."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from rlt_trainer.tiny.documents import CLOSE, END, Document, fact_document
from rlt_trainer.tiny.parts.recipe import PartsBaseRecipe
from rlt_trainer.tiny.parts.task import ANSWER_LABELS
from rlt_trainer.tiny.task import LABELS, MODULUS, OPERATIONS, apply

Make = Callable[[random.Random, int], Document]
Piece = list[tuple[str, bool]]
"""Words, and whether the loss counts each."""


def lookup_document(rng: random.Random, length: int) -> Document:
    """A table of labels, then entries with ONE operation applied: `A 36 +5 41 ;`, to a fresh value `17 B *3 51 ;`."""
    starts, operations, head = _table(rng)

    def applied() -> Piece:
        label = rng.choice(LABELS)
        value, operation = starts.get(label), operations[label]
        if value is None:
            fresh = rng.randrange(MODULUS)
            return [(str(fresh), False), (label, False), (operation, True), (str(apply(fresh, operation)), True), _END]
        shown = (str(value), operation, str(apply(value, operation)))
        return [(label, False), *((word, True) for word in shown), _END]

    return _filled(head, applied, length)


def recall_document(rng: random.Random, length: int) -> Document:
    """A table of labels, then some of its entries as they stand there: `A 36 +5 ;` and `B *3 ;`."""
    starts, operations, head = _table(rng)

    def entry() -> Piece:
        label = rng.choice(LABELS)
        words = [str(starts[label])] if label in starts else []
        return [(label, False), *((word, True) for word in (*words, operations[label])), _END]

    return _filled(head, entry, length)


def copy_document(rng: random.Random, length: int) -> Document:  # noqa: ARG001 - as long as its pieces are
    """Labelled results, all random and in any order, then `#` and the results of B, D, F and H: these are learned."""
    results = {label: str(rng.randrange(MODULUS)) for label in ANSWER_LABELS}
    pieces = [[label, rng.choice(OPERATIONS), value] for label, value in results.items()]
    others = [label for label in LABELS if label not in results]
    pieces += [[label, *_random_words(rng)] for label in rng.sample(others, rng.randint(0, len(others)))]
    rng.shuffle(pieces)
    head: Piece = [(word, False) for piece in pieces for word in piece]
    told: Piece = [(word, True) for pair in results.items() for word in pair]
    return _document([*head, (CLOSE, False), *told, (END, True)])


DOCUMENTS: Final[dict[str, Make]] = {
    "fact": fact_document,
    "lookup": lookup_document,
    "recall": recall_document,
    "copy": copy_document,
}


def parts_base_documents(recipe: PartsBaseRecipe, seed: int) -> Iterator[Document]:
    """Endless pre-training documents. None holds two operations in a row, a question or an explanation."""
    rng = random.Random(f"parts base {seed}")  # noqa: S311 - reproducible data, nothing secret
    shares = [getattr(recipe, f"{name}_share") for name in DOCUMENTS]
    while True:
        [make] = rng.choices(list(DOCUMENTS.values()), shares)
        yield make(rng, recipe.document_tokens)


_END: Final = (";", False)


def _table(rng: random.Random) -> tuple[dict[str, int], dict[str, str], Piece]:
    """Start values of every second label, an operation of each, and both as words."""
    starts = {label: rng.randrange(MODULUS) for label in LABELS[::2]}
    operations = {label: rng.choice(OPERATIONS) for label in LABELS}
    words = ["|"]
    for label, operation in operations.items():
        words += [label, *([str(starts[label])] if label in starts else []), operation]
    return starts, operations, [(word, False) for word in (*words, "|")]


def _random_words(rng: random.Random) -> list[str]:
    return [str(rng.randrange(MODULUS)), rng.choice(OPERATIONS), str(rng.randrange(MODULUS))]


def _filled(head: Piece, piece: Callable[[], Piece], length: int) -> Document:
    words = list(head)
    while len(words) + 5 <= length:  # the longest piece
        words += piece()
    return _document(words)


def _document(words: Piece) -> Document:
    return Document(tuple(word for word, _ in words), tuple(learned for _, learned in words))
