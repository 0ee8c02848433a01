"""`python -m teacher_bench …`"""

from __future__ import annotations

from rlt_bench.command import main

if __name__ == "__main__":
    main("teacher_bench", ("overhead", "overlap", "memory", "real"))
