"""Options that say which samples become rows of a version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlt_client.cli.choices import Select

if TYPE_CHECKING:
    from rlt_client.schemas.builds import Selection

__all__ = ["AtLeast", "AtMost", "Context", "MinReward", "Mode", "Rows", "Weight", "WithoutFlag", "selection"]

_PANEL = "Selection"
_COMPONENTS = "reward, ss_mean, ss_min, ss_sum, kl_mean, kl_max, format, completion_tokens, n_answer, n_think, …"

Mode = Annotated[Select, typer.Option("--select", help="which samples of a problem", rich_help_panel=_PANEL)]
Rows = Annotated[
    int | None, typer.Option("-k", min=1, help="rows of each problem, with --select top_k", rich_help_panel=_PANEL)
]
MinReward = Annotated[float | None, typer.Option(help="leave out what lies below", rich_help_panel=_PANEL)]
AtLeast = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help=f"leave out what lies below: {_COMPONENTS}", rich_help_panel=_PANEL),
]
AtMost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="leave out what lies above, such as student_tokens=16000", rich_help_panel=_PANEL
    ),
]
Context = Annotated[
    int | None,
    typer.Option(min=1, help="tokens of the student's context: leave out what is longer", rich_help_panel=_PANEL),
]
WithoutFlag = Annotated[
    list[str] | None, typer.Option(metavar="FLAG", help="leave out what carries it", rich_help_panel=_PANEL)
]
Weight = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="rank by other coefficients: lambda, ss_min_coef, kl_max_coef, format_coef",
        rich_help_panel=_PANEL,
    ),
]


def selection(
    mode: Select,
    k: int | None,
    min_reward: float | None,
    at_least: list[str] | None,
    at_most: list[str] | None,
    context: int | None,
    without_flag: list[str] | None,
    weight: list[str] | None,
) -> Selection:
    """Raises `typer.BadParameter` for what is no selection."""
    from rlt_client.cli.requests import make, parse_bounds
    from rlt_client.schemas.builds import Selection

    bounds: dict[str, Any] = {
        "at_least": parse_bounds("--at-least", at_least),
        "at_most": parse_bounds("--at-most", at_most),
    }
    weights = parse_bounds("--weight", weight) or None
    return make(
        Selection,
        mode=mode.value,
        k=k,
        min_reward=min_reward,
        context=context,
        without_flags=without_flag,
        weights=weights,
        **bounds,
    )
