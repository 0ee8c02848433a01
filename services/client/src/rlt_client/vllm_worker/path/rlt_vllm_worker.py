"""Loaded by vLLM into its workers, in vLLM's own environment: nothing of this project can be imported here."""

from __future__ import annotations

from typing import Any


class OutputLayers:
    """vLLM adds its methods to those of a worker (`--worker-extension-cls`)."""

    def pack_output_layers(self: Any) -> int:
        """Pack the weights of output layers anew, as after the first load; how many there are."""
        layers = [layer for layer in self.get_model().modules() if type(layer).__name__ == "ParallelLMHead"]
        for layer in layers:
            layer.quant_method.process_weights_after_loading(layer)
        return len(layers)
