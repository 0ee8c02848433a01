"""Completions without a reward: left out, counted, and too many of them end the run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from rlt_trainer.errors import RewardsMissing

__all__ = ["Failures"]


class Failures:
    """Args:
    share: of the completions of the last `window` steps that may lack a reward.
    """

    def __init__(self, share: float, window: int) -> None:
        self._share = share
        self._steps: deque[tuple[int, Counter[str]]] = deque(maxlen=window)

    def saw(self, failures: Iterable[str | None]) -> int:
        """Take a step's completions, None for each that has a reward. Returns how many have none.

        Raises:
            RewardsMissing: too many, once a whole window is full.
        """
        listed = list(failures)
        why = Counter(failure for failure in listed if failure is not None)
        self._steps.append((len(listed), why))
        total = sum(count for count, _ in self._steps)
        missing = sum((each for _, each in self._steps), Counter())
        if len(self._steps) == self._steps.maxlen and missing.total() > self._share * total:
            causes = ", ".join(f"{name} {count}" for name, count in missing.most_common(5))
            raise RewardsMissing(
                f"{missing.total()} of {total} completions of the last {len(self._steps)} steps have no reward, more "
                f"than {self._share:.1%}: {causes}"
            )
        return why.total()
