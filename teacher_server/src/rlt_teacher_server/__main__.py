"""`rlt-teacher-server`: reads its settings first; what takes long is imported when the server starts."""

from __future__ import annotations

from typing import NoReturn

from rlt_service.settings import load
from rlt_teacher_server.settings import Settings

PROG = "rlt-teacher-server"


def main() -> NoReturn:
    settings = load(Settings, prog=PROG)

    from rlt_service.server import serve
    from rlt_teacher_server.app import build
    from rlt_teacher_server.openai.errors import OpenAIErrors

    serve(lambda: build(settings), settings, prog=PROG, refusals=OpenAIErrors)


if __name__ == "__main__":
    main()
