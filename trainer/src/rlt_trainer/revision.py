"""The content hash of a model's folder, as the servers give it with each reply."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

__all__ = ["folder_revision"]

_WEIGHTS: Final = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
_CONFIGS: Final = (
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def folder_revision(folder: Path) -> str | None:
    """`sha256:` and 16 hexadecimal digits over names and contents of weights, configuration and tokenizer.

    None for a folder without weights.
    """
    weights = {file for pattern in _WEIGHTS for file in folder.glob(pattern)}
    if not weights:
        return None
    total = hashlib.sha256()
    for file in sorted([*weights, *(folder / name for name in _CONFIGS if (folder / name).is_file())]):
        with file.open("rb") as opened:
            total.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()[:16]}"
