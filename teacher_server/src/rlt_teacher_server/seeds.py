"""Which seed a sample gets. Documented, because a sample can be made again from it."""

from __future__ import annotations

import hashlib
import secrets

__all__ = ["derive_seed", "fresh_seed"]


def derive_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of a request with `seed`: the first 63 bits of SHA-256 of "seed:index" in decimal."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def fresh_seed() -> int:
    """For a request that names none: 63 random bits."""
    return secrets.randbits(63)
