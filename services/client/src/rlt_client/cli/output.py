"""Where commands write, and how they write numbers."""

from __future__ import annotations

from functools import cache
from typing import Final

from rich.console import Console
from rich.text import Text

from rlt_client._figures import nats
from rlt_client.schemas.reward import Score

__all__ = ["console", "headline", "nats", "reason", "safe"]

_HIDDEN: Final = (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_PICTURES: Final = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | dict.fromkeys(
    _HIDDEN, 0xFFFD
)
"""Controls, and what turns the direction of text."""


@cache
def console() -> Console:
    """Standard output. Colours follow the terminal, NO_COLOR and FORCE_COLOR."""
    return Console(highlight=False, soft_wrap=False)


def safe(text: str) -> str:
    """A model's text, which may not command the terminal: controls are shown as pictures."""
    return text.translate(_PICTURES)


def headline(score: Score | None) -> Text:
    """One line on a score: the reward and what it is made of, or why there is none."""
    if score is None:
        return Text("not scored", style="dim")
    if score.reward is None:
        return Text(f"no reward: {reason(score)}", style="red")
    text = Text.assemble("reward ", (nats(score.reward), "bold"))
    parts = score.components
    if parts is not None:
        named = {"r_ss": parts.r_ss, "r_kl": parts.r_kl, "format": parts.format or None}
        text.append(" = " if any(named.values()) else "", style="dim")
        text.append(", ".join(f"{name} {nats(value)}" for name, value in named.items() if value is not None), "dim")
    if score.flags:
        text.append(f"  [{', '.join(score.flags)}]", style="yellow")
    return text


def reason(score: Score) -> str:
    problem = score.error
    return "unknown" if problem is None else f"{problem.type}: {problem.detail or problem.title}"
