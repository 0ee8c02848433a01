"""PromQL as far as our dashboards, rules and scalers use it: read strictly, so that what is not understood fails.

Source: the grammar of prometheus/prometheus, `promql/parser`. No parser of it is to be had as a package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

__all__ = ["BadQuery", "Query", "Selector", "parse"]

AGGREGATIONS = {"sum", "min", "max", "avg", "count"}
OF_RANGES = {"rate", "increase"}
FUNCTIONS = {"absent": 1, "clamp_min": 2, "histogram_quantile": 2, "time": 0, "vector": 1, "rate": 1, "increase": 1}
BINARY = {"or": 1, "and": 2, "unless": 2, **dict.fromkeys(("==", "!=", "<=", "<", ">=", ">"), 3), "+": 4, "-": 4}
BINARY |= {"*": 5, "/": 5, "%": 5}

TOKEN = re.compile(
    r"""\s*(?:(?P<range>\[\d+[smhd]\])|(?P<number>\d+(?:\.\d+)?)|(?P<string>"[^"\\]*"|'[^'\\]*')
    |(?P<name>[A-Za-z_:][\w:]*)|(?P<sign>=~|!~|!=|==|<=|>=|[-+*/%<>(){},=]))""",
    re.VERBOSE,
)


class BadQuery(ValueError):
    """Not PromQL, or more of it than is known here."""


@dataclass(frozen=True)
class Selector:
    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    """Label, operator, value."""
    ranged: bool = False


@dataclass(frozen=True)
class Query:
    """What a query reads, and by which labels of it."""

    selectors: tuple[Selector, ...] = ()
    labels: frozenset[tuple[Selector, str]] = frozenset()
    """Labels that something is grouped by."""
    ranged: bool = False
    by: frozenset[str] | None = field(default=None, compare=False)
    """Labels that are left; None: all."""


def parse(text: str) -> Query:
    """Raises `BadQuery`."""
    reader = _Reader(text.replace("$__rate_interval", "5m"))
    query = reader.expression(0)
    reader.expect_end()
    if query.ranged:
        raise BadQuery(f"{text}: a range of values cannot be shown")
    return query


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0

    def expression(self, least: int) -> Query:
        left = self._one()
        while (operator := self._peek()) in BINARY and BINARY[operator] > least:
            self._next()
            if self._peek() in ("on", "ignoring"):
                self._next()
                self._labels()
            right = self.expression(BINARY[operator])
            if left.ranged or right.ranged:
                raise self._bad(f"{operator} of ranges")
            kept = left if operator in ("and", "unless") else replace(left, by=None)
            left = replace(_joined(left, right), by=kept.by)
        return left

    def _one(self) -> Query:
        kind, word = self._next()
        if kind == "number":
            return Query()
        if word == "-":
            return self._one()
        if word == "(":
            return self._until_closed()
        if kind != "name":
            raise self._bad(f"{word!r}")
        if word in AGGREGATIONS:
            return self._aggregation()
        return self._call(word) if self._peek() == "(" else self._selector(word)

    def _until_closed(self) -> Query:
        inner = self.expression(0)
        self._expect(")")
        return inner

    def _aggregation(self) -> Query:
        by = self._grouping()
        self._expect("(")
        inner = self._until_closed()
        if by is None:
            by = self._grouping()
        if inner.ranged:
            raise self._bad("an aggregation of ranges")
        if inner.by is not None and not (by or frozenset()) <= inner.by:
            raise self._bad(f"grouped by {set(by or ())}, of which only {set(inner.by)} are left")
        used = {(selector, label) for selector in inner.selectors for label in by or ()}
        return replace(inner, labels=inner.labels | used, by=by or frozenset())

    def _grouping(self) -> frozenset[str] | None:
        if self._peek() != "by":
            return None
        self._next()
        return self._labels()

    def _labels(self) -> frozenset[str]:
        self._expect("(")
        found = []
        while self._peek() != ")":
            found.append(self._name())
            if self._peek() == ",":
                self._next()
        self._next()
        return frozenset(found)

    def _call(self, name: str) -> Query:
        if name not in FUNCTIONS:
            raise self._bad(f"the function {name}")
        arguments = self._arguments()
        if len(arguments) != FUNCTIONS[name]:
            raise self._bad(f"{name} of {len(arguments)} arguments")
        if any(argument.ranged != (name in OF_RANGES) for argument in arguments if argument.selectors):
            raise self._bad(f"{name} of the wrong kind of values")
        if name == "histogram_quantile":
            self._check_quantile(arguments[1])
        whole = Query()
        for argument in arguments:
            whole = replace(_joined(whole, argument), by=argument.by)
        return replace(whole, ranged=False)

    def _check_quantile(self, of: Query) -> None:
        buckets = all(selector.metric.endswith("_bucket") for selector in of.selectors)
        if not buckets or (of.by is not None and "le" not in of.by):
            raise self._bad("a quantile of what are no buckets with `le`")

    def _arguments(self) -> list[Query]:
        self._expect("(")
        found: list[Query] = []
        while self._peek() != ")":
            found.append(self.expression(0))
            if self._peek() == ",":
                self._next()
        self._next()
        return found

    def _selector(self, metric: str) -> Query:
        matchers = self._matchers() if self._peek() == "{" else ()
        ranged = self._at < len(self._tokens) and self._tokens[self._at][0] == "range"
        if ranged:
            self._next()
        return Query((Selector(metric, matchers, ranged),), ranged=ranged)

    def _matchers(self) -> tuple[tuple[str, str, str], ...]:
        self._expect("{")
        found = []
        while self._peek() != "}":
            label, (_, operator), (kind, value) = self._name(), self._next(), self._next()
            if operator not in ("=", "!=", "=~", "!~") or kind != "string":
                raise self._bad(f"{label} {operator} {value}")
            if "~" in operator:
                re.compile(value[1:-1])
            found.append((label, operator, value[1:-1]))
            if self._peek() == ",":
                self._next()
        self._next()
        return tuple(found)

    def _name(self) -> str:
        kind, word = self._next()
        if kind != "name":
            raise self._bad(f"{word!r} instead of a label")
        return word

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise self._bad("its end")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, word: str) -> None:
        kind, found = self._next()
        if found != word:
            raise self._bad(f"{found!r} ({kind}) instead of {word!r}")

    def expect_end(self) -> None:
        if self._at < len(self._tokens):
            raise self._bad(repr(self._peek()))

    def _bad(self, what: str) -> BadQuery:
        return BadQuery(f"{self._text}: {what} is not understood")


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(text.rstrip()):
        match = TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise BadQuery(f"{text}: nothing is known that begins with {text[at : at + 10]!r}")
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def _joined(left: Query, right: Query) -> Query:
    return Query((*left.selectors, *right.selectors), left.labels | right.labels)
