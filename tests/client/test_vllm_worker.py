"""What vLLM's workers are given for processors, on stand-ins of its layers; on real ones: tests/contract."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from rlt_client import vllm_worker


class UnquantizedEmbeddingMethod:
    def __init__(self) -> None:
        self.packed: list[object] = []

    def process_weights_after_loading(self, layer: object) -> None:
        self.packed.append(layer)


class Quantized(SimpleNamespace): ...


class ParallelLMHead(SimpleNamespace): ...


class OfAnotherPlatform(ParallelLMHead): ...


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(vllm_worker.FOLDER)
    module, name = vllm_worker.EXTENSION.split(".")
    extension = getattr(import_module(module), name)

    class Worker(extension):  # type: ignore[misc]  # vLLM, too, learns of it by name
        def __init__(self, *layers: object) -> None:
            self._layers = layers

        def get_model(self) -> Any:
            return SimpleNamespace(modules=lambda: iter(self._layers))

    return Worker


@pytest.mark.parametrize("kind", [ParallelLMHead, OfAnotherPlatform])
def test_output_layers_alone_are_packed(worker: Any, kind: type[ParallelLMHead]) -> None:
    method = UnquantizedEmbeddingMethod()
    head = kind(quant_method=method)
    getattr(worker(SimpleNamespace(), SimpleNamespace(quant_method=method), head), vllm_worker.PACK)()
    assert len(method.packed) == 1
    assert method.packed[0] is head


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (SimpleNamespace(quant_method=SimpleNamespace(moe_kernel=object())), "keeps experts"),
        (ParallelLMHead(quant_method=Quantized()), "keeps a quantized model's output layer"),
    ],
    ids=["experts", "quantized"],
)
def test_what_would_stay_as_it_was_is_refused(worker: Any, other: object, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        getattr(worker(other), vllm_worker.PACK)()
