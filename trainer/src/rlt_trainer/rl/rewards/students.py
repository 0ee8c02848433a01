"""Which student rewards: a run is held to one, and gives the server those that it made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlt_client.aio import AsyncRewardClient
from rlt_client.schemas.models import LoadModel, ModelState, Role
from rlt_trainer.errors import BadConfig, StaleStudent

__all__ = ["Student", "publish", "served", "settle"]


@dataclass(frozen=True, slots=True)
class Student:
    """`revision`: content hash of the weights. `folder`: where they are, of one that this run made."""

    revision: str
    folder: Path | None = None


async def publish(client: AsyncRewardClient, name: str, folder: Path, *, revision: str | None = None) -> Student:
    """Make a folder's model the student of a name; nothing is done where it is that already.

    Args:
        revision: that it must have.

    Raises:
        RLTError: the server refuses it, or does not answer.
    """
    request = LoadModel(role=Role.student, name=name, source=str(folder), expected_revision=revision)
    reply = await client.load_model(request)
    return Student(reply.model.revision, folder)


async def served(client: AsyncRewardClient, name: str | None) -> Student:
    """The student of a name, or the default.

    Raises:
        BadConfig: there is none.
        RLTError: the server does not answer.
    """
    models = await client.models()
    if name is None:
        return Student(models.student.revision)
    named = [each for each in models.students if each.name == name and each.state is ModelState.serving]
    if not named:
        there = ", ".join(sorted({each.name for each in models.students}))
        raise BadConfig(f"the reward server has no student {name!r}, but {there}")
    return Student(named[0].revision)


async def settle(client: AsyncRewardClient, name: str | None, wanted: Student | None) -> Student:
    """The student that rewards from now on: `wanted`, or what is served.

    Raises:
        StaleStudent: another than `wanted` is served, and this run does not have it.
    """
    if wanted is not None and wanted.folder is not None and name is not None:
        return await publish(client, name, wanted.folder, revision=wanted.revision)
    there = await served(client, name)
    if wanted is not None and there.revision != wanted.revision:
        raise StaleStudent(
            f"the reward server's student is {there.revision}, not {wanted.revision} that this run was rewarded by: "
            "serve that one again, or begin a run of another output"
        )
    return there
