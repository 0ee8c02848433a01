"""Which folders may become policies of the tiny model, found out without loading them."""

from __future__ import annotations

import json
import shutil

import pytest

from rlt_client.errors import InvalidRequest, RLTError
from rlt_client.schemas.models import ModelKind
from rlt_service.checkpoint import UnusableModel
from rlt_service.paths import AllowedRoots
from rlt_service.revision import ModelNotFound, model_revision
from rlt_teacher_server.model import load_model
from rlt_teacher_server.policies.sources import Sources

FULL, LORA = ModelKind.full, ModelKind.lora


@pytest.fixture(scope="module")
def sources(tiny_model, policies_dir):
    return Sources(AllowedRoots([policies_dir]), load_model(str(tiny_model)))


@pytest.fixture
def copied(tiny_model, tmp_path):
    """The tiny model, to be changed."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_trainers_save(sources, other_model, tiny_adapter):
    for folder, kind in ((other_model, FULL), (tiny_adapter(1), LORA)):
        assert sources.folder(str(folder), kind) == folder
        assert sources.check(folder, kind) == model_revision(folder)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("architecture", "architecture.*num_hidden_layers"),
        ("tokenizer", "its tokenizer is not that of"),
        ("tensor-missing", "weights are missing, too many, or of another shape than served: model.norm.weight"),
        ("pickles", "it has no safetensors"),
        ("model-cut-off", "its weights cannot be read"),
    ],
)
def test_full_weights_that_are_refused(sources, broken_policy, fault, said):
    with pytest.raises(UnusableModel, match=said):
        sources.check(broken_policy(fault), FULL)


def test_adapters_that_are_refused(sources, broken_policy):
    with pytest.raises(UnusableModel, match='peft_type = "IA3": only LoRA'):
        sources.check(broken_policy("not-lora"), LORA)
    with pytest.raises(ModelNotFound, match=r"it has no adapter_config\.json"):
        sources.folder(str(broken_policy("no-adapter-config")), LORA)


def test_a_folder_of_the_other_kind(sources, other_model, tiny_adapter):
    for folder, kind in ((other_model, LORA), (tiny_adapter(1), FULL)):
        with pytest.raises(ModelNotFound, match=f"not a folder of a {kind} policy"):
            sources.folder(str(folder), kind)


def test_what_trainers_write_differently(sources, copied):
    """Names of fields that transformers has changed, ids that TRL sets, padding that a data loader left."""
    config = json.loads((copied / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": "bfloat16", "pad_token_id": 3, "use_cache": False}
    (copied / "config.json").write_text(json.dumps(config))
    edit(
        copied / "tokenizer.json",
        truncation={"max_length": 64, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    )
    assert sources.check(copied, FULL)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_weights_alone_will_do(sources, copied, name):
    (copied / name).unlink(missing_ok=True)
    assert sources.check(copied, FULL)


@pytest.mark.parametrize(
    "fields",
    [
        {"rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_theta": 2.0, "rope_type": "default"}},
        {"model_type": "mistral"},
    ],
)
def test_the_same_shapes_that_compute_something_else(sources, copied, fields):
    edit(copied / "config.json", **fields)
    with pytest.raises(UnusableModel, match="architecture"):
        sources.check(copied, FULL)


def test_an_index_that_names_files_elsewhere(sources, copied):
    (copied / "model.safetensors").rename(copied.parent / "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnusableModel, match="not a file of this folder"):
        sources.check(copied, FULL)


@pytest.mark.parametrize("source", ["/etc", "..", "~/x", "https://example.org/x", "file:///etc", "x\0"])
def test_paths_outside_the_roots(sources, source):
    with pytest.raises(InvalidRequest, match="path_not_allowed"):
        sources.folder(source, LORA)


def test_a_link_in_the_folder_that_leads_out(sources, policies_dir, tiny_adapter, tmp_path):
    outside = shutil.copy(tiny_adapter(1) / "adapter_model.safetensors", tmp_path)
    folder = shutil.copytree(tiny_adapter(1), policies_dir / "linked")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to(outside)
    with pytest.raises(InvalidRequest, match="path_not_allowed"):
        sources.folder(str(folder), LORA)


def test_a_folder_that_is_not_there(sources):
    with pytest.raises(RLTError, match="it has no config"):
        sources.folder("nowhere", FULL)
