"""`python -m jobs_bench …`"""

from __future__ import annotations

from rlt_bench.command import main

if __name__ == "__main__":
    main("jobs_bench", ("flush", "browse", "claim", "submit", "growth", "export", "throughput"))
