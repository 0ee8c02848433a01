"""Loaded by vLLM into its workers, in vLLM's own environment: nothing of this project can be imported here."""

from __future__ import annotations

from typing import Any


class OutputLayers:
    """vLLM adds its methods to those of a worker (`--worker-extension-cls`)."""

    def pack_output_layers(self: Any) -> None:
        """Pack the weights of output layers anew, as after the first load.

        Raises:
            RuntimeError: the model has layers that cannot be packed twice.
        """
        layers = list(self.get_model().modules())
        if any(getattr(getattr(layer, "quant_method", None), "moe_kernel", None) is not None for layer in layers):
            raise RuntimeError("on a processor this vLLM keeps experts as they were: replace them on a GPU")
        for layer in layers:
            if _is(layer, "ParallelLMHead"):
                if not _is(layer.quant_method, "UnquantizedEmbeddingMethod"):
                    raise RuntimeError("on a processor this vLLM keeps a quantized model's output layer")
                layer.quant_method.process_weights_after_loading(layer)


def _is(thing: object, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(thing).__mro__)
