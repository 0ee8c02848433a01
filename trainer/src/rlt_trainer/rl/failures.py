"""Completions without a reward: left out, counted, and too many of them end the run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from rlt_trainer.errors import RewardsMissing

__all__ = ["Failures", "Step"]

SHOWN: Final = 5  # causes that the message names

Step = tuple[int, dict[str, int]]
"""Completions, and how many of them have no reward for which cause."""


class Failures:
    """Args:
    share: of the completions of the last `window` steps that may lack a reward.
    before: `steps` of a run that goes on.
    """

    def __init__(self, share: float, window: int, before: Iterable[Step] = ()) -> None:
        self._share = share
        self._window = window
        self._steps = deque(((count, Counter(why)) for count, why in before), maxlen=window)

    @property
    def steps(self) -> list[Step]:
        """The window as it is now."""
        return [(count, dict(why)) for count, why in self._steps]

    def saw(self, failures: Iterable[str | None]) -> int:
        """Take a step's completions, None for each that has a reward. Returns how many have none.

        Raises:
            RewardsMissing: too many for the whole window, however the rest of it goes.
        """
        listed = list(failures)
        why = Counter(failure for failure in listed if failure is not None)
        self._steps.append((len(listed), why))
        seen = sum(count for count, _ in self._steps)
        window = seen + (self._window - len(self._steps)) * len(listed)
        missing = sum((each for _, each in self._steps), Counter())
        if missing.total() > self._share * window:
            causes = ", ".join(f"{name} {count}" for name, count in missing.most_common(SHOWN))
            raise RewardsMissing(
                f"{missing.total()} of the last {seen} completions have no reward, more than {self._share:.1%} of "
                f"those of {self._window} steps: {causes}"
            )
        return why.total()
