"""What a build asks for, as it is stored, and the two hashes that make it repeatable."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from rlt_client.schemas.builds import BuildKind, BuildRequest, Sampling, Selection, Source, Truncated
from rlt_client.schemas.reward import Preset, SpecRequest

__all__ = ["Spec", "digest", "request_hash", "request_key", "sample_seed"]

# What decides how samples come out, as against where they go and who is first.
SHAPING = {"kind", "n", "sampling", "seed", "format", "policy", "student", "spec", "truncated"}


class Spec(BaseModel):
    """A build's request without its problems."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: BuildKind
    n: int
    sampling: Sampling
    seed: int
    format: str | None
    policy: str | None
    student: str | None
    spec: Preset | SpecRequest
    selection: Selection
    keep_tokens: bool
    truncated: Truncated = Truncated.keep
    source: Source | None = None
    deduplicate: bool = True

    @classmethod
    def of(cls, request: BuildRequest) -> Self:
        return cls.model_validate(request.model_dump(mode="json"))

    def stored(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def hash(self) -> bytes:
        """Equal for two builds that ask the same of teacher and scorer for the same problems."""
        return digest(self.model_dump(mode="json", include=SHAPING))


def digest(value: Any) -> bytes:
    """SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).digest()


def request_hash(request: BuildRequest) -> bytes:
    """Equal for two requests that ask for the same, however they are spelt."""
    return digest(request.model_dump(mode="json"))


def sample_seed(seed: int, problem: int, sample_idx: int, try_: int) -> int:
    """The seed that the teacher gets for one sample, 0 … 2**63 − 1.

    The first 8 bytes of BLAKE2b("seed/problem/sample/try"), big-endian, without the last bit.
    """
    text = f"{seed}/{problem}/{sample_idx}/{try_}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def request_key(
    *,
    policy_revision: str | None,
    engine: str | None,
    format_hash: str | None,
    problem: tuple[str, str],
    sampling: Sampling,
    seed: int,
) -> bytes:
    """16 bytes that name what was asked of which policy: equal keys, equal samples of a deterministic engine.

    `problem` is (question, answer): all of the teacher's prompt that the format does not fix.
    """
    shape = [policy_revision, engine, format_hash, *problem, sampling.model_dump(mode="json"), seed]
    return digest(shape)[:16]
