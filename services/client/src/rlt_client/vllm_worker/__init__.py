"""What a vLLM on a processor needs to take full weights.

There (vLLM 0.31) layers compute with weights that were packed when they were loaded. `reload_weights` packs dense
layers anew, but not an output layer that shares its weights with the embeddings, of which a checkpoint has no tensor:
it goes on with the old ones. `pack_output_layers` of this extension of its workers packs that too, and refuses what it
cannot pack: experts, and output layers of quantized models. On a GPU nothing is packed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rlt_client.errors import InvalidRequest

__all__ = ["EXTENSION", "FOLDER", "PACK", "packs"]

FOLDER: Final = Path(__file__).parent / "path"
"""For vLLM's `PYTHONPATH`: it holds the extension alone."""
EXTENSION: Final = "rlt_vllm_worker.OutputLayers"
"""For `--worker-extension-cls`."""
PACK: Final = "pack_output_layers"
"""The method, for `POST /collective_rpc`."""


def packs(device: str | None, extension: str) -> bool:
    """Whether a vLLM must be told to pack after a reload.

    Args:
        device, extension: `device_config.device` and `parallel_config.worker_extension_cls` of its settings.

    Raises:
        InvalidRequest: weights_unavailable; it must, and cannot.
    """
    if device != "cpu":
        return False
    if extension != EXTENSION:
        detail = (
            "the engine would keep its output layer: on a processor start vLLM with --worker-extension-cls "
            f"{EXTENSION}, and the folder that rlt_client.vllm_worker.FOLDER names in its PYTHONPATH"
        )
        raise InvalidRequest(detail, type="weights_unavailable")
    return True
