"""The folder in which the processes of one worker count together.

prometheus_client looks for it when it is imported, so this module is used before that and does not import it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import Final

__all__ = ["FOLDER", "share"]

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"


def share() -> None:
    """From now on; the folder goes when this process ends."""
    folder = tempfile.mkdtemp(prefix="rlt-jobs-metrics-")
    os.environ[FOLDER] = folder
    atexit.register(_forget, folder, os.getpid())


def _forget(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # and not a process that it forked
        shutil.rmtree(folder, ignore_errors=True)
