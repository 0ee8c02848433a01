"""`rlt explain`: filters, streams, several policies, and what its exit code says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console

from rlt_client.cli import live, output
from rlt_client.cli.explained import show
from rlt_client.errors import APIError, NotFound, Overloaded
from rlt_client.schemas.common import FormatRef, GenStatus, ModelRef, Problem
from rlt_client.schemas.explain import (
    Delta,
    ExplainEvent,
    Explanation,
    ExplanationUsage,
    Finished,
    Leak,
    Restarted,
    Scored,
    Started,
)
from rlt_client.testing import FakePlatform, make_score

Show = Callable[[ExplainEvent], None]


@pytest.fixture
def fake() -> FakePlatform:
    return FakePlatform(
        reward=lambda item: -float(len(item.explanation or "")), explain=lambda _, index: "x" * (index + 1)
    )


@pytest.fixture
def served(fake: FakePlatform) -> Iterator[dict[str, str]]:
    with fake.serve() as url:
        yield {"RLT_TEACHER_URL": url}


def test_what_is_asked_for_is_what_was_said(rlt, served: dict[str, str], fake: FakePlatform) -> None:
    options = "--keep best --min-reward -9 --incomplete retry --retry-max-tokens 64 --drop-leaks --max-tokens 32"
    done = rlt("explain", "q", "a", *options.split(), "--policy", "run", "--seed", "3", env=served)
    assert done.returncode == 0, done.stderr
    [request] = fake.requests
    given = request.model_dump()
    assert (
        given.items()
        >= {
            "question": "q",
            "answer": "a",
            "n": 4,
            "stream": False,
            "policy": "run",
            "score": True,
            "keep": "best",
            "min_reward": -9.0,
            "incomplete": "retry",
            "retry_max_tokens": 64,
            "drop_leaks": True,
            "max_tokens": 32,
            "temperature": 0.7,
            "seed": 3,
        }.items()
    )


def test_several_policies_are_compared(rlt, served: dict[str, str], fake: FakePlatform) -> None:
    done = rlt("explain", "q", "a", "-n", "2", "--policy", "old", "--policy", "new", env=served)
    assert done.returncode == 0, done.stderr
    [request] = fake.requests
    assert request.policies == ["old", "new"]  # type: ignore[union-attr]
    assert "1. best sample 0 of old" in done.stdout
    rows = [
        re.split(r"\s*[│┃]\s*", line)[1:-1] for line in done.stdout.splitlines() if " old " in line or " new " in line
    ]
    table = {row[0]: row[2:] for row in rows if len(row) == 9}
    assert table == {
        "old": ["2/2", "2", "0", "-1.500", "-1.000", "0", "2"],
        "new": ["2/2", "2", "0", "-3.500", "-3.000", "2", "0"],
    }


def test_a_stream_shows_lines_and_then_the_ranking(rlt, served: dict[str, str]) -> None:
    done = rlt("explain", "q", "a", "-n", "2", "--stream", env=served)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:6] == [
        "0 │ x",
        "0 │ – complete, 1 tokens",
        "0 │ – reward -1.000 = r_ss -1.000, r_kl 0.000",
        "1 │ xx",
        "1 │ – complete, 2 tokens",
        "1 │ – reward -2.000 = r_ss -2.000, r_kl 0.000",
    ]
    assert "1. best sample 0" in done.stdout


def test_a_stream_as_json_is_a_line_an_event(rlt, served: dict[str, str]) -> None:
    done = rlt("explain", "q", "a", "-n", "1", "--stream", "--json", env=served)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["started", "delta", "finished", "scored", "done"]
    assert events[-1]["response"]["explanations"][0]["text"] == "x"


@pytest.mark.parametrize("how", [(), ("--stream",), ("--json",), ("--stream", "--json")])
def test_without_an_explanation_it_fails(rlt, served: dict[str, str], how: tuple[str, ...]) -> None:
    done = rlt("explain", "q", "a", "--min-reward", "1", *how, env=served)
    assert done.returncode == 1
    assert done.stderr == ""
    if not how:
        assert "left out: 4 below the reward asked for" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep", "best", "--no-score"), "min_reward and keep: best need score: true"),
        (("--retry-max-tokens", "5"), "retry_max_tokens needs incomplete: retry"),
        (("--policy", "a", "--policy", "a"), "one is named twice"),
        (("--incomplete", "forget"), "'forget' is not one of"),
    ],
)
def test_options_that_do_not_fit(rlt, served: dict[str, str], options: tuple[str, ...], words: str) -> None:
    done = rlt("explain", "q", "a", *options, env=served)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize("how", [(), ("--stream",)])
def test_a_refusal_is_a_line(rlt, how: tuple[str, ...]) -> None:
    with FakePlatform(refuse=once(NotFound("no such policy", type="policy_not_found"))).serve() as url:
        done = rlt("explain", "q", "a", *how, env={"RLT_TEACHER_URL": url})
    assert done.returncode == 1
    assert done.stderr == "rlt: error: policy_not_found: no such policy\n"


def test_overloaded_is_asked_again(rlt) -> None:
    with FakePlatform(refuse=once(Overloaded("full", retry_after=0.01))).serve() as url:
        done = rlt("explain", "q", "a", "--stream", env={"RLT_TEACHER_URL": url})
    assert done.returncode == 0, done.stderr


def once(error: APIError) -> Callable[[httpx.Request], APIError | None]:
    """Refuse the first request that is more than a sign of life."""
    errors = [error]

    def refuse(request: httpx.Request) -> APIError | None:
        return errors.pop() if request.method == "POST" and errors else None

    return refuse


# What is shown


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to a terminal without colours."""
    file = io.StringIO()
    console = Console(file=file, width=60, height=24, color_system=None)
    for module in ("live", "explained"):
        monkeypatch.setattr(f"rlt_client.cli.{module}.console", lambda: console)
    return file


def started(samples: int, *policies: str) -> Started:
    refs = [ModelRef(name=name, revision="r") for name in policies or ("p",)]
    return Started(
        samples=samples, policies=refs, format=FormatRef(name="f", version="1", hash="h"), seed=1, prompt_tokens=3
    )


def explanation(text: str | None = "text", **given: Any) -> Explanation:
    values: dict[str, Any] = {
        "index": 0,
        "text": text,
        "completion": text,
        "gen_status": GenStatus.complete,
        "finish_reason": "stop",
        "usage": ExplanationUsage(prompt_tokens=1, completion_tokens=5),
    }
    return Explanation(**values | given)


def test_lines_come_when_they_are_whole(shown: io.StringIO) -> None:
    with live.watching() as tell:
        tell(started(2))
        for index, text in ((0, "one "), (1, "a"), (0, "two\nthr"), (1, "b\n\n"), (0, "ee")):
            tell(Delta(index=index, text=text, tokens=1))
        assert shown.getvalue().splitlines() == ["0 │ one two", "1 │ ab", "1 │ "]
        tell(Restarted(index=0, reason="engine_down"))
        tell(Delta(index=0, text="again", tokens=1))
        tell(Finished(explanation=explanation("again")))
        tell(Scored(index=0, score=make_score(-2.0)))
    assert shown.getvalue().splitlines()[3:] == [
        "0 │ begins anew: engine_down",
        "0 │ again",
        "0 │ – complete, 5 tokens",
        "0 │ – reward -2.000 = r_ss -2.000, r_kl 0.000",
    ]


def panels(height: int, *events: ExplainEvent) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=40, height=height, color_system=None, force_terminal=True)
    drawn = live._Panels()
    for event in events:
        drawn.show(event)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlt_client.cli.live.console", lambda: console)
        console.print(drawn)
    return file.getvalue().splitlines()


def test_panels_show_the_end_of_each_text() -> None:
    text = "".join(f"word{number} " for number in range(60))
    drawn = panels(
        13, started(2, "old", "new"), Delta(index=0, text=text, tokens=60), Delta(index=1, text="b", tokens=1)
    )
    assert len(drawn) <= 12
    assert "sample 0 of old · 60 tokens" in drawn[0]
    assert any("word59" in line for line in drawn)
    assert not any("word0 " in line for line in drawn)
    assert any("sample 1 of new · 1 tokens" in line for line in drawn)


@pytest.mark.parametrize("samples", [1, 3, 50])
@pytest.mark.parametrize("height", [3, 10, 24])
def test_panels_fit_the_terminal(samples: int, height: int) -> None:
    drawn = panels(height, started(samples), *(Delta(index=i, text="long " * 99, tokens=9) for i in range(samples)))
    assert len(drawn) <= max(3, height - 1)


def test_panels_say_how_a_sample_ended() -> None:
    cut = explanation(None, gen_status=GenStatus.truncated)
    drawn = "\n".join(
        panels(
            20,
            started(1),
            Delta(index=0, text="old", tokens=3),
            Restarted(index=0, reason="truncated"),
            Delta(index=0, text="new", tokens=1),
            Finished(explanation=cut),
            Scored(index=0, score=make_score(-1.5)),
        )
    )
    assert "sample 0 · 1 tokens · truncated" in drawn
    assert "reward -1.500" in drawn
    assert "new" in drawn
    assert "old" not in drawn


def test_a_terminal_gets_panels_and_nothing_of_them_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, width=60, height=24, force_terminal=True)
    monkeypatch.setattr("rlt_client.cli.live.console", lambda: console)
    with live.watching() as tell:
        tell(started(1))
        tell(Delta(index=0, text="hello", tokens=1))
    assert "hello" in file.getvalue()
    assert file.getvalue().endswith("\x1b[1A\x1b[2K"), "the last lines are erased"


@pytest.mark.parametrize(
    ("each", "words"),
    [
        (explanation("\n\nthe text\n"), ["│ the text"]),
        (explanation(None, completion="cut of", gen_status=GenStatus.truncated), ["· truncated", "│ cut of"]),
        (
            explanation(
                None,
                completion=None,
                error=Problem(type="engine_failed", title="t", detail="two died"),
                gen_status=GenStatus.engine_error,
            ),
            ["· engine_error", "│ two died"],
        ),
        (explanation(flags=["repetition", "retried"]), ["· repetition, retried"]),
        (explanation("\x1b[31mred\x07 \u202eevil"), ["␛[31mred␇ �evil"]),
        (explanation("\n"), ["sample 0"]),
    ],
)
def test_a_panel_says_what_there_is(
    shown: io.StringIO, fake: FakePlatform, each: Explanation, words: list[str]
) -> None:
    from rlt_client.schemas.explain import ExplainRequest

    reply = fake.explain(ExplainRequest(question="q", answer="a"))
    show(reply.model_copy(update={"explanations": [each]}))
    for word in words:
        assert word in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


def test_leaks_are_marked_where_they_stand(monkeypatch: pytest.MonkeyPatch, fake: FakePlatform) -> None:
    from rlt_client.schemas.explain import ExplainRequest

    file = io.StringIO()
    console = Console(file=file, width=60, color_system="standard", force_terminal=True)
    monkeypatch.setattr("rlt_client.cli.explained.console", lambda: console)
    text = "\nas given in the solution, 4"
    leak = Leak(pattern="given", start=text.index("given"), end=text.index(", 4"), text="given in the solution")
    reply = fake.explain(ExplainRequest(question="q", answer="a"))
    show(reply.model_copy(update={"explanations": [explanation(text, leaks=[leak])]}))
    assert "\x1b[4;33mgiven in the solution\x1b[0m" in file.getvalue()


def test_an_adapter_is_known_by_its_own_hash() -> None:
    from rlt_client.cli.explained import _short

    assert _short("sha256:aaaaaaaaaaaaaaaa+sha256:bbbbbbbbbbbbbbbb") == "sha256:bbbbbbbbbbbb"
    assert output.safe("a\tb\n") == "a\tb\n"
