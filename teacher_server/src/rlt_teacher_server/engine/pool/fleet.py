"""All engines together: what they are to hold, who holds what in them, and which of them a question goes to."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from rlt_client.errors import Unavailable
from rlt_teacher_server.engine.base import FullWeights
from rlt_teacher_server.engine.pool.bell import Bell
from rlt_teacher_server.engine.pool.held import Held, Target
from rlt_teacher_server.engine.pool.options import Events, PoolOptions
from rlt_teacher_server.engine.pool.replica import DOWN, Replica, State

__all__ = ["Fleet"]


class Fleet:
    """Args:
    base: the full weights that the engines were started with.
    wanted: those that they are to hold.
    """

    def __init__(
        self, base: FullWeights, wanted: FullWeights, bell: Bell, options: PoolOptions, events: Events
    ) -> None:
        self.base = base
        self.target = Target(wanted)
        self.bell = bell
        self.options = options
        self.events = events
        self.replicas: list[Replica] = []
        self.swapping = False
        """Whether an engine is emptied, or given other weights, that new requests may have to wait for."""
        self.retiring: set[str] = set()
        """Adapters that are about to be unloaded."""
        self._picks = itertools.count(1)
        self._of_weights: Counter[str] = Counter()
        self._of_adapter: Counter[str] = Counter()

    # Sessions

    def hold(self, held: Held) -> None:
        self._of_weights[held.weights.revision] += 1
        if held.adapter is not None:
            self._of_adapter[held.adapter.name] += 1

    def release(self, held: Held) -> None:
        last = _less(self._of_weights, held.weights.revision)
        if held.adapter is not None:
            last |= _less(self._of_adapter, held.adapter.name)
        if last:
            self.bell.ring()

    def holds_adapter(self, name: str) -> bool:
        return self._of_adapter[name] > 0

    def wants(self, held: Held) -> bool:
        """Whether new sessions may hold it."""
        retires = held.adapter is not None and held.adapter.name in self.retiring
        return self.target.wants(held) and not retires

    # Engines

    def open_to(self, held: Held) -> list[Replica]:
        """Engines that take new questions."""
        return [replica for replica in self.replicas if replica.state is State.up and replica.serves(held)]

    def able(self, held: Held) -> list[Replica]:
        """Engines for a question whose session is open: one that is being emptied only where there is no other."""
        serving = [replica for replica in self.replicas if replica.serves(held)]
        return self.open_to(held) or serving

    def pick(self, able: Sequence[Replica]) -> Replica:
        """The one with the fewest samples; of equal ones by their own gauges, then the one that was picked longest ago.

        To weigh samples by their budgets was no better in a simulation with budgets of 64 to 8192 tokens: few samples
        use theirs up.
        """
        least = min(able, key=_load)
        least.picked = next(self._picks)
        return least

    def current(self) -> list[Replica]:
        """Engines that serve, and hold the full weights that are wanted."""
        return [replica for replica in self.replicas if replica.has(self.target.weights)]

    def stale(self, replica: Replica) -> bool:
        return replica.serving and not replica.has(self.target.weights)

    def free(self, replica: Replica) -> bool:
        """Whether it may be given other weights: nothing runs in it, and no session could need it for what it holds."""
        if replica.samples or replica.weights is None:
            return not replica.samples
        return not self._of_weights[replica.weights.revision] or self.another(replica)

    def another(self, replica: Replica) -> bool:
        """Whether another one with its weights takes new questions."""
        weights = replica.weights
        return weights is not None and any(
            other.state is State.up and other.has(weights) for other in self.replicas if other is not replica
        )

    def down(self) -> Unavailable:
        """Why nobody can be served."""
        out = [replica for replica in self.replicas if not replica.serving]
        what = "is up" if len(out) == len(self.replicas) else "that is up holds this policy"
        detail = "; ".join([f"no engine {what}", *(f"{replica.name}: {replica.info().detail}" for replica in out)])
        troubles = {replica.trouble for replica in out}
        return Unavailable(detail, type=troubles.pop() if len(troubles) == 1 else DOWN, retry_after=1.0)

    def adopt(self, target: Target) -> None:
        """Want other weights from now on."""
        self.target = target
        for replica in self.current():
            replica.to(State.up)  # one that was about to leave these very weights
        for replica in self.replicas:
            replica.wake()


def _load(replica: Replica) -> tuple[int, int, int]:
    gauges = replica.queue.gauges
    return replica.samples, gauges.running + gauges.waiting if gauges else 0, replica.picked


def _less(counts: Counter[str], key: str) -> bool:
    """Whether it was the last. Names are never used again: they would pile up."""
    counts[key] -= 1
    return not counts[key] and counts.pop(key) == 0
