"""The public surface of the servers: every route has a scope, and the committed OpenAPI documents are what is served.

python tests/contract/test_openapi.py    writes docs/openapi/ again
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from rlt_client.schemas.common import Scope
from rlt_service.auth import PUBLIC_PATHS, undeclared_routes

FOLDER = Path(__file__).parents[2] / "docs" / "openapi"
SERVERS = ("reward", "teacher", "jobs")


def app_of(server: str) -> FastAPI:
    """Built with the least settings; building opens nothing."""
    if server == "reward":
        from rlt_reward_server import app as reward
        from rlt_reward_server.settings import Settings as RewardSettings

        return reward.build(RewardSettings(student="unused"))
    if server == "teacher":
        from rlt_teacher_server import app as teacher
        from rlt_teacher_server.settings import Settings as TeacherSettings

        return teacher.build(TeacherSettings(model="unused"))
    from rlt_jobs import app as jobs
    from rlt_jobs.settings import Settings as JobsSettings

    return jobs.build(JobsSettings(database_url="postgresql+psycopg://unused@127.0.0.1/unused"))


def text_of(app: FastAPI) -> str:
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def operations(app: FastAPI) -> dict[str, Any]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }


@pytest.mark.parametrize("server", SERVERS)
def test_the_committed_document_is_what_is_served(server: str) -> None:
    committed = FOLDER / f"{server}.json"
    assert text_of(app_of(server)) == committed.read_text(), f"run: python {Path(__file__).name} (see its docstring)"


@pytest.mark.parametrize("server", SERVERS)
def test_every_route_declares_a_scope(server: str) -> None:
    app = app_of(server)
    assert undeclared_routes(app) == []
    known = {scope.value for scope in Scope}
    for name, operation in operations(app).items():
        path = name.split()[1]
        declared = {scope for scheme in operation.get("security", []) for scopes in scheme.values() for scope in scopes}
        assert (path in PUBLIC_PATHS) or (declared and declared <= known), name


def test_the_paths_that_were_promised() -> None:
    served = {name for server in SERVERS for name in operations(app_of(server))}
    assert {
        "POST /explain",
        "POST /generate",
        "POST /reward",
        "POST /builds",
        "GET /builds/{id}",
        "GET /builds/{id}/samples",
        "POST /uploads",
        "GET /versions/{id}/export",
    } <= {name.replace("{build_id}", "{id}").replace("{version_id}", "{id}") for name in served}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for each in SERVERS:
        (FOLDER / f"{each}.json").write_text(text_of(app_of(each)))
        sys.stdout.write(f"docs/openapi/{each}.json\n")
