"""Reading, writing and comparing keys."""

from __future__ import annotations

import re

import pytest

from rlt_client.schemas.common import Scope
from rlt_service.keys import TOKEN_PATTERN, BadKeys, Key, StaticKeys, create_token, hash_token, parse_keys

HASH = hash_token("a token")


def test_tokens_are_random_and_have_one_shape() -> None:
    tokens = {create_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(TOKEN_PATTERN, token) for token in tokens)


def test_a_line_goes_there_and_back() -> None:
    key = Key(HASH, "alice@example.org", frozenset({Scope.reward, Scope.explain}), in_path=True)
    assert key.line() == f"alice@example.org explain,reward sha256:{HASH} path"
    assert parse_keys(key.line(), "x") == [key]


def test_options_of_a_line() -> None:
    line = f"ann reward sha256:{HASH} path rate=100/minute items=5000/hour"
    [key] = parse_keys(line, "x")
    assert (key.in_path, key.rate, key.items) == (True, "100/minute", "5000/hour")
    assert key.line() == line
    assert parse_keys(f"ann reward sha256:{HASH} items=5000/hour  path  rate=100/minute", "x") == [key]


def test_comments_blank_lines_and_semicolons() -> None:
    text = f"# the team\n\n  a reward sha256:{HASH}  # Ann\nb explain,build sha256:{HASH};c admin sha256:{HASH} path\n"
    keys = parse_keys(text, "x")
    assert [(key.owner, key.in_path) for key in keys] == [("a", False), ("b", False), ("c", True)]
    assert keys[1].scopes == {Scope.explain, Scope.build}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alice reward", "want `OWNER SCOPE"),
        ("alice sha256:" + HASH, "want `OWNER SCOPE"),
        ("alice reward sha256:abc", "want `OWNER SCOPE"),
        (f"alice reward sha256:{HASH.upper()}", "want `OWNER SCOPE"),
        (f"alice reward sha256:{HASH} url", "want `OWNER SCOPE"),
        (f"alice reward sha256:{HASH} rate=0/minute", "want `OWNER SCOPE"),
        (f"alice reward sha256:{HASH} rate=1/week", "want `OWNER SCOPE"),
        (f"alice reward sha256:{HASH} rate=1/hour rate=2/hour", "want `OWNER SCOPE"),
        (f"al/ice reward sha256:{HASH}", "want `OWNER SCOPE"),
        (f"alice reward,root sha256:{HASH}", "no such scope: root"),
        (f"alice ,reward sha256:{HASH}", "no such scope"),
        ("alice reward rlt_" + "a" * 52, "want `OWNER SCOPE"),
    ],
)
def test_bad_lines_are_named_and_not_repeated(line: str, message: str) -> None:
    with pytest.raises(BadKeys, match="keys, line 2") as caught:
        parse_keys(f"# ok\n{line}\n", "keys")
    assert message in str(caught.value)
    assert "rlt_aaaa" not in str(caught.value)


async def test_find() -> None:
    keys = StaticKeys(parse_keys(f"ann reward sha256:{HASH}; bob admin sha256:{hash_token('b')}", "x"))
    assert (await keys.find(hash_token("a token"))).owner == "ann"  # type: ignore[union-attr]
    assert (await keys.find(hash_token("b"))).owner == "bob"  # type: ignore[union-attr]
    assert await keys.find(hash_token("c")) is None
    assert await keys.find("") is None
