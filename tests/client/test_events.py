"""Server-sent events, as the standard has them, however the network cuts them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_client._events import Decoder


def decode(*pieces: bytes) -> list[tuple[str, str]]:
    decoder = Decoder()
    return [(event.name, event.data) for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_ending(end: bytes) -> None:
    assert decode(end.join([b"event: a", b"data: 1", b"", b"data: 2", b"", b""])) == [("a", "1"), ("message", "2")]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("data: 1\ndata: 2\n\n", [("message", "1\n2")]),
        ("data:1\n\ndata:  2\n\n", [("message", "1"), ("message", " 2")]),
        ("data\n\n", [("message", "")]),
        ("event: a\n\ndata: 1\n\n", [("message", "1")]),
        (": ping\n\n: ping\ndata: 1\n: ping\n\n", [("message", "1")]),
        ("id: 3\nretry: 5\nmood: good\ndata: 1\n\n", [("message", "1")]),
        ("\ufeffdata: 1\n\n", [("message", "1")]),
        ("data: a\u2028b\x85c\x0bd\x1ce\n\n", [("message", "a\u2028b\x85c\x0bd\x1ce")]),
        ("data: a:b: c\n\n", [("message", "a:b: c")]),
        ("data: 1\n\ndata: 2\n", [("message", "1")]),
        ("data: 1", []),
        ("\n\n\n", []),
    ],
)
def test_the_standards_rules(text: str, events: list[tuple[str, str]]) -> None:
    assert decode(text.encode()) == events


LINES = st.lists(
    st.tuples(
        st.sampled_from(["data: é∑1", 'data: {"a": 2}', "event: b", ": ping", "", "", "id: 1", "data"]),
        st.sampled_from(["\n", "\r\n", "\r"]),
    ),
    max_size=12,
)


@given(LINES, st.data())
def test_it_does_not_matter_where_the_network_cuts(lines: list[tuple[str, str]], data: st.DataObject) -> None:
    whole = "".join(line + end for line, end in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    edges = [0, *cuts, len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(edges)]
    assert decode(*pieces) == decode(whole)


def test_a_long_line_in_many_pieces_is_put_together_once() -> None:
    pieces = [b"data: ", *[b"x" * 1000] * 2000, b"\n\n"]
    assert decode(*pieces) == [("message", "x" * 2_000_000)]
