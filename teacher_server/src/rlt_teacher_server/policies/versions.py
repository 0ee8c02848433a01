"""Versions of policies, and the book of them: names, the active one, and what was active before. Knows no engine."""

from __future__ import annotations

import copy
import itertools
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from rlt_client.errors import Conflict, NotFound
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.models import ModelKind
from rlt_service.pointers import at
from rlt_teacher_server.engine.base import FullWeights
from rlt_teacher_server.engine.pool import Held
from rlt_teacher_server.model import TeacherModel

__all__ = ["LONGEST_HISTORY", "Book", "Stay", "Version", "served_name"]

LONGEST_HISTORY: Final = 32
"""Activations that a rollback can go back: a trainer that publishes every step would fill memory and disk."""
NAMED: Final = 10  # names that a refusal lists

_Test = Callable[["Version"], bool]


@dataclass(slots=True, eq=False)
class Stay:
    """One time that a version was in the engines."""

    held: Held
    since: float
    """Seconds since 1970."""
    requests: int = 0
    over: bool = False
    """No request can get it any more; those that have it keep it."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Version:
    """A policy: a name and a content hash. An adapter's is `<its base's>+<its own>`."""

    ref: ModelRef
    kind: ModelKind
    folder: Path
    base: Version | None = None
    """The full weights that an adapter sits on."""
    wanted: bool = False
    """An adapter that belongs into the engines whenever they hold its base."""
    detail: str | None = None
    """Why it is not in the engines, though it should be."""
    stay: Stay | None = field(default=None, repr=False)
    served_before: str | None = None
    """What engines that were not restarted with this server may still call it."""

    def lacks(self, reason: str) -> None:
        """It cannot be loaded. Everyone may read why, and where it lies on this machine is nobody's business."""
        self.detail = reason.replace(str(self.folder), self.folder.name)

    @property
    def full(self) -> Version:
        return self.base or self

    @property
    def weights(self) -> FullWeights:
        return FullWeights(self.full.ref.revision, self.full.folder)

    @property
    def content(self) -> str:
        """The hash of its own folder."""
        return self.ref.revision.rpartition("+")[2]


def served_name(ref: ModelRef) -> str:
    """What engines call one load of an adapter: no other load was ever called so."""
    name = re.sub(r"[^\w.-]", "_", ref.name, flags=re.ASCII)[:64]
    return f"{name}@{ref.revision.rpartition(':')[2]}-{secrets.token_hex(4)}"


class Book:
    """Args:
    base: what the server was started with. It is never forgotten.
    """

    def __init__(self, base: Version) -> None:
        self.base = base
        self.versions = [base]
        """By the time that they were published, the latest last."""
        self.active = base
        self.history: list[Version] = []
        """What was active before, the latest first."""

    @classmethod
    def of(cls, model: TeacherModel) -> Self:
        return cls(Version(model.ref, ModelKind.full, model.folder))

    def named(self, name: str) -> Version:
        """What a request means: a name (its newest version), a revision, or `name@revision`.

        Raises:
            NotFound: policy_not_found.
        """
        found = self._newest(lambda v: v.ref.name == name) or self._newest(lambda v: v.ref.revision == name)
        if found is None:
            alone, _, revision = name.rpartition("@")
            found = self.find(alone, revision)
        if found is None:
            raise at("/policy", self._not_found())
        return found

    def get(self, name: str, revision: str | None = None) -> Version:
        """A version by its name, the newest if no revision is given. Raises `NotFound` (policy_not_found)."""
        found = self.find(name, revision)
        if found is None:
            raise self._not_found(f"of {name} " if revision and self.find(name) else "")
        return found

    def find(self, name: str, revision: str | None = None) -> Version | None:
        return self._newest(lambda v: v.ref.name == name and revision in (None, v.ref.revision))

    def of_name(self, name: str) -> list[Version]:
        return [version for version in self.versions if version.ref.name == name]

    def put(self, version: Version) -> None:
        """It is what its name means from now on."""
        self.versions = [*(v for v in self.versions if v is not version), version]

    def activate(self, version: Version, history: Sequence[Version]) -> None:
        self.active = version
        self.history = list(history[:LONGEST_HISTORY])

    def forget(self, version: Version) -> None:
        self.versions = [v for v in self.versions if v is not version]
        self.history = [v for v in self.history if v is not version]

    def before(self) -> list[Version]:
        """Where a rollback goes, the latest first. Raises `Conflict` (nothing_to_roll_back)."""
        found = list(itertools.dropwhile(lambda version: version is self.active, self.history))
        if not found:
            raise Conflict("nothing was active before", type="nothing_to_roll_back")
        return found

    def in_engines(self, weights: FullWeights) -> Version:
        """What an adapter sits on that is loaded on these full weights."""
        held = [v for v in self.versions if v.kind is ModelKind.full and v.ref.revision == weights.revision]
        return self.base if self.base in held else held[0]

    def check_idle(self, version: Version) -> None:
        """Raises `Conflict` (policy_is_active)."""
        if version is self.active:
            detail = f"{version.ref.name} {version.ref.revision} is active: activate another one first"
            raise Conflict(detail, type="policy_is_active")

    def check_deletable(self, versions: Sequence[Version]) -> None:
        """Raises `Conflict` (policy_is_active, policy_is_base)."""
        for version in versions:
            self.check_idle(version)
            if version is self.base:
                raise Conflict("the server was started with it", type="policy_is_base")
            if adapters := [v.ref.name for v in self.versions if v.base is version and v not in versions]:
                raise Conflict(f"{', '.join(dict.fromkeys(adapters))} sit on it", type="policy_is_base")

    def copy(self) -> Self:
        same = copy.copy(self)
        same.versions, same.history = list(self.versions), list(self.history)
        return same

    def superseded(self, version: Version) -> bool:
        """Whether its name means another one by now, and nobody activated this one."""
        return version is not self.active and version is not self.find(version.ref.name)

    def needless(self) -> list[Version]:
        """Versions that can no longer be asked for by name or rolled back to, and that no adapter sits on."""
        kept = [v for v in self.versions if not self.superseded(v) or v in self.history or v is self.base]
        bases = [v.base for v in kept]
        return [v for v in self.versions if v not in kept and v not in bases]

    def _newest(self, wanted: _Test) -> Version | None:
        return next(filter(wanted, reversed(self.versions)), None)

    def _not_found(self, which: str = "") -> NotFound:
        names = list(dict.fromkeys(version.ref.name for version in reversed(self.versions)))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        detail = f"no such version {which}" if which else f"no such policy; there is {', '.join(names[:NAMED])}{more}"
        return NotFound(detail.strip(), type="policy_not_found")
