"""What a policy is to the engines, and what they are wanted to hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from rlt_client.errors import RLTError
from rlt_teacher_server.engine.base import Adapter, FullWeights

__all__ = ["Held", "PolicyReplaced", "Target"]


class PolicyReplaced(RLTError):
    """The engines hold other full weights by now, or will in a moment; or the adapter is unloaded. Nothing was
    sampled."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a policy is to the engines."""

    weights: FullWeights
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What every engine is to hold. Never changed, only exchanged: the same object, the same wishes."""

    weights: FullWeights
    adapters: Mapping[str, Adapter] = field(default_factory=dict)

    def plus(self, adapter: Adapter) -> Self:
        return replace(self, adapters={**self.adapters, adapter.name: adapter})

    def minus(self, name: str) -> Self:
        return replace(self, adapters={key: value for key, value in self.adapters.items() if key != name})

    def moved(self, held: Held) -> Self:
        """With the same contents in another folder."""
        if not self.wants(held):
            return self
        return self.plus(held.adapter) if held.adapter else replace(self, weights=held.weights)

    def wants(self, held: Held) -> bool:
        adapter = held.adapter
        known = adapter is None or adapter.name in self.adapters
        return known and held.weights.revision == self.weights.revision
