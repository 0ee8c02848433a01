"""`rlt-reward-server`: reads its settings first, and imports what they need after."""

from __future__ import annotations

from typing import NoReturn

from rlt_reward_server.settings import Settings
from rlt_service.settings import load

PROG = "rlt-reward-server"


def main() -> NoReturn:
    settings = load(Settings, prog=PROG)

    from rlt_reward_server.app import build
    from rlt_service.server import serve

    serve(lambda: build(settings), settings, prog=PROG)


if __name__ == "__main__":
    main()
