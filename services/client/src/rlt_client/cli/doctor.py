"""`rlt doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlt_client.cli.connection import (
    DEFAULT_STATE,
    JobsURL,
    Key,
    RewardURL,
    StateDir,
    TeacherURL,
    find_service,
)

if TYPE_CHECKING:
    from rich.text import Text

    from rlt_client.doctor import Finding

__all__ = ["register"]

MARKS = {"ok": ("ok", "green"), "warning": ("mind", "yellow"), "wrong": ("wrong", "bold red")}
Quick = Annotated[bool, typer.Option("--quick", help="ask for no explanation: nothing of the models is used")]
AsJSON = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    quick: Quick = False,
    as_json: AsJSON = False,
    teacher_url: TeacherURL = None,
    reward_url: RewardURL = None,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Look at a running stack and say in plain words what is wrong. Exit code 1 if something is.

    Give it a key with the scope admin: some things only its holder is told.
    """
    import asyncio

    from rlt_client.doctor import judge, look

    urls = {"teacher": teacher_url, "reward": reward_url, "jobs": jobs_url}
    services = {name: find_service(name, url, key, state) for name, url in urls.items()}
    facts = asyncio.run(look({name: (each.url, each.key) for name, each in services.items()}, explain=not quick))
    findings = judge(facts)
    wrong = sum(finding.level == "wrong" for finding in findings)
    if as_json:
        _print_json(findings, wrong)
    else:
        _print(findings, wrong)
    if wrong:
        raise typer.Exit(1)


def _print_json(findings: list[Finding], wrong: int) -> None:
    import json

    told = {"ok": not wrong, "findings": [finding.model_dump(mode="json") for finding in findings]}
    typer.echo(json.dumps(told, indent=2, ensure_ascii=False))


def _print(findings: list[Finding], wrong: int) -> None:
    """By server; what is between them last."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from rlt_client.cli.output import console

    out = console()
    for about in ("teacher", "reward", "jobs", "stack"):
        rows = Table.grid(padding=(0, 2))
        for finding in findings:
            if finding.about == about:
                word, style = MARKS[finding.level]
                rows.add_row(Text(word, style), _words(finding))
        if rows.row_count:
            out.print(Text(about, style="bold"))
            out.print(Padding(rows, (0, 0, 0, 2)))
    mind = sum(finding.level == "warning" for finding in findings)
    summary = {0: "nothing is wrong", 1: "1 thing is wrong"}.get(wrong, f"{wrong} things are wrong")
    out.print(f"{summary}{f'; {mind} to mind' if mind else ''}")


def _words(finding: Finding) -> Text:
    """What is, and below it what to do."""
    from rich.text import Text

    from rlt_client.cli.output import safe

    todo = f"\n{safe(finding.todo)}" if finding.todo else ""
    return Text.assemble(safe(finding.says), (todo, "dim"))
