"""`rlt keys …`, added to the command `rlt` by the entry-point group `rlt.commands`."""

import re
from typing import TYPE_CHECKING, Annotated

from rlt_client.schemas.common import Scope

if TYPE_CHECKING:
    import typer

__all__ = ["register"]


def register(app: "typer.Typer") -> None:
    import typer

    keys = typer.Typer(no_args_is_help=True, help="Keys of the servers.")
    app.add_typer(keys, name="keys")

    @keys.command()
    def create(
        owner: Annotated[str, typer.Option(help="whose key it is: builds and logs carry this name")],
        scope: Annotated[list[Scope], typer.Option(help="what it may do; may be repeated")],
        in_path: Annotated[bool, typer.Option("--in-path", help="it may also stand in a URL")] = False,
        rate: Annotated[str | None, typer.Option(help="requests in a time, such as 100/minute")] = None,
        items: Annotated[str | None, typer.Option(help="explanations or samples in a time, such as 5000/hour")] = None,
    ) -> None:
        """Make a key. The token is shown once; the server gets the line, which does not reveal it."""
        from rlt_service.keys import (
            OWNER_PATTERN,
            OWNER_WANTED,
            RATE_PATTERN,
            RATE_WANTED,
            Key,
            create_token,
            hash_token,
        )

        if re.fullmatch(OWNER_PATTERN, owner) is None:
            raise typer.BadParameter(OWNER_WANTED, param_hint="--owner")
        for option, value in (("--rate", rate), ("--items", items)):
            if value is not None and re.fullmatch(RATE_PATTERN, value) is None:
                raise typer.BadParameter(RATE_WANTED, param_hint=option)
        token = create_token()
        line = Key(hash_token(token), owner, frozenset(scope), in_path, rate, items).line()
        typer.echo(f"token, for the caller (RLT_KEY):\n  {token}\nline, for the server's keys file:\n  {line}")
