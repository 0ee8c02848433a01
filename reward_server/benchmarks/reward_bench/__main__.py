"""`python -m reward_bench …`"""

from __future__ import annotations

from pathlib import Path

from rlt_bench.command import ROOT, main


def _draw(records: Path) -> None:
    from reward_bench import plot

    plot.draw(records, ROOT / "docs" / "images" / "bench-reward.png")


if __name__ == "__main__":
    main("reward_bench", ("cpu", "http", "memory", "vllm", "gpu"), draw=_draw)
