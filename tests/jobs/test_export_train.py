"""Exports as they come: `datasets` loads each file, and TRL's SFTTrainer trains on the folder."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rlt_client.formats import shipped_formats
from rlt_client.schemas.builds import ExportFormat, ExportShape
from rlt_jobs.store.card import Facts
from rlt_jobs.store.export import MEDIA_TYPES, Export
from rlt_jobs.store.files import Store, Stored
from rlt_jobs.store.shapes import Shape
from rlt_jobs.store.traces import COMPACT, MANIFEST, open_writer, table

ROWS = 8
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Write = Callable[..., Path]


def _trace(index: int, kind: str) -> dict[str, Any]:
    key = {"build_id": 1, "problem": index, "sample_idx": 0, "question_hash": b"q", "try": 0, "gen_status": "complete"}
    tokens = {"prompt_tokens": 1, "completion_tokens": 1, "request_key": b"k"}
    texts = {
        "explanation": f"because {index} is {kind}",
        "completion": "…",
        "question": f"what of {index}",
        "answer": "4",
    }
    return {**key, **tokens, **texts, "system": "be brief" if index % 2 else None}


def _member(index: int) -> dict[str, Any]:
    return {"build_id": 1, "problem": index, "sample_idx": 0, "rank": 1, "file_id": 5, "row": index, "reward": -0.5}


def _stored(store: Store, name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> Stored:
    with store.create(f"{name}.parquet") as pending, open_writer(pending.writer, schema) as writer:
        writer.write_table(table(rows, schema))
    return pending.stored


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """An export of a small version as a file; a Hugging Face folder unpacked, always under the same name.

    Versions that say another `kind` have the same manifest, as those of two platforms may have.
    """
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(format: ExportFormat, shape: ExportShape, kind: str = "even") -> Path:
        place = tmp_path / kind / shape
        store = Store(place / f"store-{format}")
        traces = _stored(store, "traces", COMPACT, [_trace(index, kind) for index in range(ROWS)])
        manifest = _stored(store, "manifest", MANIFEST, [_member(index) for index in range(ROWS)])
        student = None if shape is ExportShape.raw else shipped_formats()["stratos"].student
        facts = Facts("d", 1, None, ROWS, shape, {"mode": "best"}, None, {"problems": ROWS}, {}, "0")
        export = Export(store, manifest, {5: traces}, Shape(shape, student), facts)
        path = place / f"export.{MEDIA_TYPES[format][1]}"
        path.write_bytes(b"".join(export.stream(format)))
        if format is not ExportFormat.hf:
            return path
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            archive.extractall(place / "export")
        return place / "export"

    return make


def _loaded(path: Path, cache: Path) -> Any:
    from datasets import load_dataset

    kind = {".jsonl": "json", ".parquet": "parquet"}.get(path.suffix)
    if kind is None:
        return load_dataset(str(path), split="train", cache_dir=str(cache))
    return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache))


@pytest.mark.parametrize("shape", list(ExportShape))
def test_all_formats_load_as_the_same_rows(write: Write, shape: ExportShape, tmp_path: Path) -> None:
    jsonl, parquet, folder = (_loaded(write(format, shape), tmp_path / "cache") for format in ExportFormat)
    assert jsonl.num_rows == ROWS
    assert jsonl.to_list() == parquet.to_list() == folder.to_list()


def test_folders_of_one_name_have_their_own_rows(write: Write, tmp_path: Path) -> None:
    """`datasets` keeps what it read under the folder's name and the config's, in one place for all."""
    shapes, kinds = (ExportShape.raw, ExportShape.prompt_completion), ("even", "odd")
    folders = [write(ExportFormat.hf, shape, kind) for shape in shapes for kind in kinds]
    assert {folder.name for folder in folders} == {"export"}
    even, odd, *cut = (_loaded(folder, tmp_path / "cache") for folder in folders)
    assert (even[0]["explanation"], odd[0]["explanation"]) == ("because 0 is even", "because 0 is odd")
    said = [rows[0]["completion"][0]["content"] for rows in cut]
    assert ["is even" in said[0], "is odd" in said[1]] == [True, True]


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["what of because is even"] * 8, trainer)
    make: Any = PreTrainedTokenizerFast  # has no types
    made = make(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    return made


@pytest.mark.slow  # importing TRL takes ten seconds
@pytest.mark.parametrize(
    ("shape", "options"),
    [(ExportShape.messages, {"assistant_only_loss": True}), (ExportShape.prompt_completion, {})],
    ids=["messages", "prompt_completion"],
)
def test_trl_trains_on_what_the_assistant_says(
    write: Write, tokenizer: Any, shape: ExportShape, options: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]  # TRL imports its names late

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        logging_steps=1,
        **options,
    )
    rows = _loaded(write(ExportFormat.hf, shape), tmp_path / "cache")
    model: Any = LlamaForCausalLM  # has no types
    trainer = SFTTrainer(model=model(config), args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)
    batch = next(iter(trainer.get_train_dataloader()))
    student = shipped_formats()["stratos"].student
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = tokenizer.decode(ids[labels != -100])
        assert learned.startswith(student.open + "because")
        assert learned.rstrip().endswith("<|im_end|>")
        assert "what of" in tokenizer.decode(ids)
        assert "what of" not in learned
