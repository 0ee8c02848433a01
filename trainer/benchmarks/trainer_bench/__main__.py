"""`python -m trainer_bench …`"""

from __future__ import annotations

from rlt_bench.command import main

if __name__ == "__main__":
    main("trainer_bench", ("wait", "publish", "step", "gpu"))
