"""What a vLLM on a processor needs to take full weights.

There (vLLM 0.31) layers compute with weights that were packed when they were loaded. `reload_weights` packs dense
layers anew, but not an output layer that shares its weights with the embeddings, of which a checkpoint has no tensor:
it goes on with the old ones. `pack_output_layers` of this extension of its workers packs that too, and refuses what it
cannot pack: experts, and output layers of quantized models. On a GPU nothing is packed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["EXTENSION", "FLAGS", "FOLDER", "PACK", "PROCESSOR"]

FOLDER: Final = Path(__file__).parent / "path"
"""For vLLM's `PYTHONPATH`: it holds the extension alone."""
EXTENSION: Final = "rlt_vllm_worker.OutputLayers"
"""For `--worker-extension-cls`."""
PACK: Final = "pack_output_layers"
"""The method, for `POST /collective_rpc`."""
PROCESSOR: Final = "cpu"
"""What `device_config.device` of its settings is on a processor."""
FLAGS: Final = (
    f"on a processor start vLLM with --worker-extension-cls {EXTENSION}, "
    "and the folder that rlt_client.vllm_worker.FOLDER names in its PYTHONPATH"
)
"""For people."""
