"""Servers that die in the middle of a step, and come back, or do not: a run waits for them, and then says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from plugins.training import Servers, Service, Training
from safetensors.torch import load_file

from rlt_service.testing import running
from rlt_trainer import checkpoints

pytestmark = pytest.mark.slow  # each run is a process that trains, with servers beside it

AWAY_S = 2.0
STEPS = 3
SHORT = {"steps": STEPS}
IMPATIENT_S = 20.0  # also for every answer before the server is killed: longer than a busy machine stalls
REFUSALS = 5

TrainingOf = Callable[..., Training]
POINTS = {"teacher": ("roll-out", 1), "reward": ("scoring", 1)}


@pytest.fixture(scope="module")
def whole(training: TrainingOf) -> dict[str, torch.Tensor]:
    """The weights at the end of a run that nobody disturbed."""
    run = training("whole", training=SHORT)
    run.run()
    return finished(run)


@pytest.mark.parametrize("name", ["teacher", "reward"])
def test_a_server_killed_in_mid_step_is_waited_for(
    whole: dict[str, torch.Tensor], training: TrainingOf, servers: Servers, name: str
) -> None:
    """The teacher comes back without the policy, and is given it again."""
    run, server = training(f"{name}-away", training=SHORT), getattr(servers, name)
    process = run.start(POINTS[name], kill=server.pid)
    server.wait_killed()
    time.sleep(AWAY_S)
    assert process.is_alive()
    server.start()
    run.ended(process)
    assert run.completions().groupby("step").size().tolist() == [8] * STEPS
    assert run.completions()["reward"].notna().all()
    assert_equal(finished(run), whole)


@pytest.mark.parametrize("name", ["teacher", "reward"])
def test_patience_ends_and_the_run_can_go_on(
    whole: dict[str, torch.Tensor], training: TrainingOf, servers: Servers, name: str
) -> None:
    part = "rollout" if name == "teacher" else "reward"
    run, server = (
        training(f"{name}-gone", training=SHORT, **{part: {"patience_s": IMPATIENT_S}}),
        getattr(servers, name),
    )
    told = run.run(POINTS[name], kill=server.pid, status=1)
    server.wait_killed()
    assert told.splitlines()[-1].startswith("rlt-trainer rl: POST ")
    assert server.url in told.splitlines()[-1]
    assert "Traceback" not in told
    found = checkpoints.newest(run.output)
    assert found is not None
    assert found.name == "checkpoint-1"

    server.start()
    server.wait_ready()
    run.run()
    assert_equal(finished(run), whole)


def test_a_reward_server_that_comes_back_with_another_student_ends_the_run(
    training: TrainingOf, servers: Servers, tiny_base: Path
) -> None:
    run = training("other-student", training=SHORT)
    process = run.start(POINTS["reward"], kill=servers.reward.pid)
    servers.reward.wait_killed()
    servers.reward.start(student=f"student={tiny_base}")
    try:
        for told in (run.ended(process, status=1), run.run(status=1)):  # nor does it go on with that one later
            assert "the reward server's student is" in told.splitlines()[-1]
            assert "Traceback" not in told
    finally:
        servers.reward.kill()
        servers.reward.start()
        servers.reward.wait_ready()
    run.run()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("name", "path"), [("teacher", "/generate"), ("reward", "/reward")])
def test_a_server_that_is_busy_for_a_while_is_asked_again(
    whole: dict[str, torch.Tensor], training: TrainingOf, servers: Servers, name: str, path: str, status: int
) -> None:
    server = getattr(servers, name)
    part = "rollout" if name == "teacher" else "reward"
    busy = busy_at_first(server, path, status)
    with running(busy) as url:
        run = training(f"{name}-busy-{status}", training=SHORT, **{part: {"url": url}})
        run.run()
    assert busy.state.refused == REFUSALS
    assert_equal(finished(run), whole)


def busy_at_first(server: Service, path: str, status: int) -> FastAPI:
    """Stands before a server and refuses the first requests to `path`."""
    app = FastAPI()
    app.state.refused = 0

    @app.api_route("/{rest:path}", methods=["GET", "POST", "DELETE"])
    async def forward(request: Request) -> Response:
        if request.url.path == path and app.state.refused < REFUSALS:
            app.state.refused += 1
            problem = {"type": "overloaded", "title": "busy", "status": status}
            return JSONResponse(problem, status, {"retry-after": "0.1"}, media_type="application/problem+json")
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            reply = await client.request(
                request.method,
                request.url.path,
                params=request.query_params,
                content=await request.body(),
                headers={"content-type": request.headers.get("content-type", "application/json")},
            )
        return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))

    return app


def finished(run: Training) -> dict[str, torch.Tensor]:
    return load_file(run.output / "model" / "model.safetensors")


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """To the last bit."""
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
