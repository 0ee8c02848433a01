"""`rlt-trainer distill` on what a version's export writes, in each shape and each kind of file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlt_client.formats import shipped_formats
from rlt_client.schemas.builds import ExportFormat, ExportShape
from rlt_jobs.store.card import Facts
from rlt_jobs.store.export import MEDIA_TYPES, Export
from rlt_jobs.store.files import Store
from rlt_jobs.store.shapes import Shape
from rlt_jobs.store.traces import COMPACT, MANIFEST, open_writer, table
from rlt_trainer import distill
from rlt_trainer.config import DistillConfig
from rlt_trainer.config.distill import TraceShape
from rlt_trainer.config.sections import Data, Model, TextRole, Texts
from rlt_trainer.texts import NOT_LEARNED
from rlt_trainer.tokenized import Tokenizing, tokenized

ROWS = 4
TAGS = ["<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Write = Callable[[ExportFormat, ExportShape], Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """An export of a version of four traces, every other one with a system message of its own."""
    folder = tmp_path_factory.mktemp("exports")
    store, stored = Store(folder / "store"), {}
    for name, schema, row in (("traces", COMPACT, trace), ("manifest", MANIFEST, member)):
        with store.create(f"{name}.parquet") as pending, open_writer(pending.writer, schema) as writer:
            writer.write_table(table([row(index) for index in range(ROWS)], schema))
        stored[name] = pending.stored

    def make(format: ExportFormat, shape: ExportShape) -> Path:
        student = None if shape is ExportShape.raw else shipped_formats()["stratos"].student
        facts = Facts("d", 1, None, ROWS, shape, {"mode": "best"}, None, {"problems": ROWS}, {}, "0")
        export = Export(store, stored["manifest"], {5: stored["traces"]}, Shape(shape, student), facts)
        path = folder / f"{shape}.{MEDIA_TYPES[format][1]}"
        path.write_bytes(b"".join(export.stream(format)))
        if format is not ExportFormat.hf:
            return path
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            archive.extractall(folder / shape)
        return folder / shape

    return make


def trace(index: int) -> dict[str, Any]:
    texts = {"question": f"what of {index}", "answer": "4", "explanation": f"{index} is even", "completion": "…"}
    key = {"build_id": 1, "problem": index, "sample_idx": 0, "question_hash": b"q", "try": 0, "gen_status": "complete"}
    tokens = {"prompt_tokens": 1, "completion_tokens": 1, "request_key": b"k"}
    return {**key, **tokens, **texts, "system": "be brief" if index % 2 else None}


def member(index: int) -> dict[str, Any]:
    return {"build_id": 1, "problem": index, "sample_idx": 0, "rank": 1, "file_id": 5, "row": index, "reward": -0.5}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of bytes, with a chat template that has no generation markers."""
    folder = tmp_path_factory.mktemp("student")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend: Any = Tokenizer(models.BPE(vocab={each: place for place, each in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    make: Any = PreTrainedTokenizerFast  # has no types
    tokenizer = make(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))  # type: ignore[no-untyped-call]  # annotated in part
    model.save_pretrained(folder)
    return folder


def texts_of(file: Path, shape: ExportShape, student: Path, folder: Path) -> list[tuple[str, str]]:
    """(what is read, what is learned) of each row."""
    tokenizing = Tokenizing(Model(name=str(student)), Texts(max_tokens=2048), TraceShape(shape), (TextRole.student,))
    decode = tokenizing.codec.decode
    found = []
    for row in tokenized(Data(path=str(file)), tokenizing, folder):
        start = row["labels"].count(NOT_LEARNED)
        assert row["labels"][start:] == row["input_ids"][start:]
        found.append((decode(row["input_ids"][:start]), decode(row["input_ids"][start:])))
    return found


def test_shapes_have_the_names_of_exports() -> None:
    assert {shape.value for shape in TraceShape} == {shape.value for shape in ExportShape}


@pytest.mark.parametrize("shape", list(ExportShape), ids=str)
def test_each_export_teaches_the_same_texts(shape: ExportShape, write: Write, student: Path, tmp_path: Path) -> None:
    made = [texts_of(write(format, shape), shape, student, tmp_path) for format in ExportFormat]
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == ROWS
    system = shipped_formats()["stratos"].student.system
    thought, thought_end, solution, solution_end = TAGS
    for index, (read, learned) in enumerate(made[0]):
        told = "be brief" if index % 2 else system
        asked = f"<|im_start|>system\n{told}<|im_end|>\n<|im_start|>user\nwhat of {index}<|im_end|>\n"
        asked += "<|im_start|>assistant\n"
        said = f"{thought}{index} is even{thought_end}\n\n{solution}4{solution_end}<|im_end|>"
        opened = thought if shape is ExportShape.raw else ""  # by format, the opening tag is part of the prompt
        assert (read, learned) == (f"{asked}{opened}", said.removeprefix(opened))


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "apart"])
def test_a_student_is_distilled_from_an_exported_folder(
    packing: bool, write: Write, student: Path, tmp_path: Path
) -> None:
    folder = distill.run(
        DistillConfig.model_validate(
            {
                "output": tmp_path / "run",
                "model": {"name": str(student), "dtype": "float32"},
                "data": {"path": str(write(ExportFormat.hf, ExportShape.messages))},
                "shape": "messages",
                "texts": {"max_tokens": 2048},
                "packing": packing,
                "training": {"steps": 2, "batch_size": 1, "learning_rate": 1e-2, "cpu": True},
                "logging": {"to": []},
                "checkpoints": {"every": 0},
            }
        )
    )
    before, after = (AutoModelForCausalLM.from_pretrained(each) for each in (student, folder))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
