"""What is read of a model's folder, and what never is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlt_service.checkpoint import UnusableModel, check_adapter, read_json, tensors, weight_files


def adapter(folder: Path, **config: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    save_file({"a": np.zeros((2, 3), dtype=np.float16)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter(tmp_path: Path) -> None:
    check_adapter(adapter(tmp_path, r=8, bias="none", modules_to_save=None, init_lora_weights=True, use_dora=False))


@pytest.mark.parametrize(
    ("field", "value"),
    [("peft_type", "IA3"), ("bias", "all"), ("modules_to_save", ["lm_head"]), ("init_lora_weights", "pissa")],
)
def test_adapters_that_change_more_than_an_adapter_may(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(UnusableModel, match=f"{field} = "):
        check_adapter(adapter(tmp_path, **{field: value}))


@pytest.mark.parametrize("content", [None, "", "[]", "{", "\xff"])
def test_a_configuration_that_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UnusableModel, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_adapters_in_pickles(tmp_path: Path) -> None:
    (adapter(tmp_path) / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UnusableModel, match=r"no adapter_model\.safetensors"):
        check_adapter(tmp_path)


def test_which_files_are_read(tmp_path: Path) -> None:
    def names() -> list[str]:
        return [file.name for file in weight_files(tmp_path)]

    (tmp_path / "pytorch_model.bin").touch()
    assert names() == ["pytorch_model.bin"]
    (tmp_path / "consolidated.safetensors").touch()
    index = {"weight_map": {"a": "part-2.safetensors", "b": "part-1.safetensors", "c": "part-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert names() == ["part-1.safetensors", "part-2.safetensors"]
    (tmp_path / "model.safetensors").touch()
    assert names() == ["model.safetensors"]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="not a file of this folder"):
        weight_files(tmp_path)


def test_headers_need_no_torch(tmp_path: Path) -> None:
    file = adapter(tmp_path) / "adapter_model.safetensors"
    assert list(tensors(file)) == [("a", "F16", (2, 3))]
    code = f"import sys; from pathlib import Path; from rlt_service.checkpoint import tensors; \
list(tensors(Path({str(file)!r}))); sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
