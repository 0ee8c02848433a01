"""`python -m rlt_local.models LINK`: have the tiny warm-up model made, or found in the cache, and link to it.

The trainer is a program here, not an import: it brings torch along.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-m", "rlt_trainer", "tiny", "warmup")


def main(link: Path) -> int:
    """The trainer's last line names the folder; the ones before are its progress."""
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as training:
        last = ""
        for line in training.stdout or ():
            last = line.strip()
            sys.stdout.write(line)
            sys.stdout.flush()
    if training.returncode == 0:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(last).absolute())
    return training.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
