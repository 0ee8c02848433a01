"""The commands of `rlt`: those of this package, and those that other distributions add.

A distribution adds commands with an entry point in the group `rlt.commands` whose value is a function
`register(app: typer.Typer) -> None`. One that fails costs a warning line, never the command.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import typer

from rlt_client.cli import build, data, doctor, explain, models, policies, score
from rlt_client.cli.errors import told_in_a_line

GROUP = "rlt.commands"
EPILOG = (
    "Where the services are: --teacher-url, --reward-url, --jobs-url (RLT_TEACHER_URL, RLT_REWARD_URL, RLT_JOBS_URL) "
    "and --key (RLT_KEY); else the local stack of ./.rlt; else ports 8001, 8002 and 8003 of this machine. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a service was not reached."
)


def make_app() -> typer.Typer:
    app = typer.Typer(
        name="rlt",
        help="Explanations, their rewards, and data sets made of them.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,  # what users can mend is told in a line; a bug keeps Python's own traceback
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for module in (explain, score, build, data, models, policies, doctor):
        module.register(app)
    for plugin in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        add_plugin(app, plugin)
    return app


def add_plugin(app: typer.Typer, plugin: EntryPoint) -> None:
    try:
        plugin.load()(app)
    except Exception as error:  # whatever a foreign package raises while it loads
        reason = str(error).partition("\n")[0] or type(error).__name__
        sys.stderr.write(f"rlt: warning: the commands of {plugin.value} are left out: {reason}\n")


def run() -> None:
    with told_in_a_line():
        make_app()()
