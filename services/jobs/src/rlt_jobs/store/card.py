"""The README.md of an exported Hugging Face folder: what the data is, how it was made, how to train on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from rlt_client.schemas.builds import ExportShape
from rlt_jobs.store.files import Store, Stored
from rlt_jobs.store.joined import members_of

__all__ = ["Facts", "card"]

_MEASURED: Final = ("reward", "ss_mean", "kl_mean", "n_think", "n_answer")
_QUANTILES: Any = [0.0, 0.05, 0.5, 0.95, 1.0]  # the stubs allow one only
_SIZES: Final = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
_MEANINGS: Final = {
    "reward": "the reward",
    "ss_mean": "r_SS, mean: the student's log-prob of the answer, nats a token",
    "kl_mean": "r_KL, mean: how much of the explanation only the answer explains, nats a token",
    "n_think": "tokens of the explanation",
    "n_answer": "tokens of the answer",
}
_ROWS_ARE: Final = {
    ExportShape.messages: "`messages`: a chat of system, user (the question) and assistant (the explanation between "
    "the format's tags, then the answer)",
    ExportShape.prompt_completion: "`prompt` (system and user: the question) and `completion` (assistant: the "
    "explanation between the format's tags, then the answer), both as chat messages",
    ExportShape.sharegpt: "`conversations`: turns of `from` (system, human, gpt) and `value`",
    ExportShape.raw: "`question`, `answer`, `explanation`, and all that is known of each: rank, reward and its parts, "
    "tokens, the policy's revision",
}
_TRAIN: Final = {
    ExportShape.messages: """from trl import SFTConfig, SFTTrainer

# the loss on the assistant's turn only; leave it out to train on the whole chat
trainer = SFTTrainer(model="…", train_dataset=rows, args=SFTConfig(assistant_only_loss=True))
trainer.train()""",
    ExportShape.prompt_completion: """from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(model="…", train_dataset=rows, args=SFTConfig())  # the loss is on the completion
trainer.train()""",
    ExportShape.sharegpt: """# Axolotl: type: chat_template, field_messages: conversations
# LLaMA-Factory: formatting: sharegpt""",
    ExportShape.raw: """best = rows.filter(lambda row: row["rank"] == 1)""",
}

_TEMPLATE: Final = """---
pretty_name: {pretty_name}
task_categories:
- text-generation
size_categories:
- {size}
tags:
- reasoning
- synthetic
- reinforcement-learned-teacher
configs:
- config_name: {config}
  data_files:
  - split: train
    path: data/train-*.parquet
---
# {dataset}, version {number}

{rows} explanations of {problems} problems. A teacher model was shown each question *together with its answer* and wrote
how one gets there; {kept} by how much it helps a student model to find that answer
([Reinforcement Learning Teachers of Test Time Scaling](https://arxiv.org/abs/2506.08388)).
Made by RLT Platform.

No licence is set: it depends on that of the problems and of the models. Whoever publishes this adds `license:` to the
head of this file.

## Rows

A row has {row}.

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder-or-repository", split="train")
```

```python
{train}
```

## Selection

{selection}

{statistics}

What they were chosen from:

{counts}

## Lineage

{lineage}

<details><summary>Everything, as JSON</summary>

```json
{everything}
```
</details>
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a version. `scorer` is None for one without scores."""

    dataset: str
    number: int
    parent: int | None
    rows: int
    shape: ExportShape
    selection: Mapping[str, Any]
    scorer: Mapping[str, Any] | None
    counts: Mapping[str, int]
    lineage: Mapping[str, Any]
    manifest_sha256: str


def card(facts: Facts, store: Store, manifest: Stored, files: Iterable[Stored]) -> str:
    """Markdown with the front matter that `datasets.load_dataset(folder)` and the hub read.

    Args:
        files: those that the rows are read from.

    Raises:
        Damaged: the manifest cannot be read.
    """
    members = pa.Table.from_batches(list(members_of(store, manifest, ("build_id", "problem", *_MEASURED))))
    return _TEMPLATE.format(
        pretty_name=json.dumps(f"{facts.dataset} v{facts.number}"),
        config=_config_name(facts, [manifest, *files]),
        size=next((name for most, name in _SIZES if facts.rows < most), "1B<n<10B"),
        dataset=facts.dataset,
        number=facts.number,
        rows=f"{facts.rows:,}",
        problems=f"{len(members.select(['build_id', 'problem']).group_by(['build_id', 'problem']).aggregate([])):,}",
        kept=_kept(facts.selection),
        row=_ROWS_ARE[facts.shape],
        train=_TRAIN[facts.shape],
        selection=_table(("", ""), _chosen(facts.selection)),
        statistics=_table(("of these rows", "mean", "least", "5 %", "median", "95 %", "most"), _spreads(members)),
        counts=_table(("", ""), ((name.replace("_", " "), f"{count:,}") for name, count in facts.counts.items())),
        lineage=_table(("", ""), _origins(facts)),
        everything=_everything(facts.lineage),
    )


def _config_name(facts: Facts, files: Iterable[Stored]) -> str:
    """Another one for other rows: `datasets` keeps what it reads of a folder under the last part of the folder's name
    and this, and gives it to whoever loads a folder of the same two names. It is the only one, hence the default."""
    checksums = " ".join(sorted(file.sha256 for file in files))
    return f"v{facts.number}-{facts.shape}-{hashlib.sha256(checksums.encode()).hexdigest()[:12]}"


def _everything(lineage: Mapping[str, Any]) -> str:
    """The lineage without the folders of the machine that the problems lay on: cards are published."""

    def public(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        place = value.get("path")
        named = {"path": PurePath(place).name} if isinstance(place, str) else {}
        return {name: public(inner) for name, inner in {**value, **named}.items()}

    written = json.dumps(public(dict(lineage)), indent=2, ensure_ascii=False)
    return written.replace("`", "\\u0060")  # the fence's end


def _kept(selection: Mapping[str, Any]) -> str:
    kept = {"best": "the best of each problem was kept, judged", "all": "all were kept, judged"}
    return kept.get(selection.get("mode", ""), f"the {selection.get('k')} best of each problem were kept, judged")


def _chosen(selection: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in selection.items():
        if value not in (None, {}, []):
            yield name.replace("_", " "), value if isinstance(value, str) else json.dumps(value)


def _spreads(members: pa.Table) -> Iterable[tuple[str, ...]]:
    for name in _MEASURED:
        if name not in members.schema.names or members[name].null_count == len(members):
            continue
        column = members[name]
        quantiles = pc.quantile(column, q=_QUANTILES).to_pylist()
        figures = [pc.mean(column).as_py(), *quantiles]
        yield _MEANINGS[name], *(f"{figure:,.4g}" for figure in figures)


def _origins(facts: Facts) -> Iterable[tuple[str, str]]:
    """What made the rows, in the order in which they were made."""
    scorer, lineage = facts.scorer or {}, facts.lineage
    format = lineage.get("format") or {}
    found = {
        "teacher's policies": ", ".join(lineage.get("policy_revisions") or []),
        "sampling": json.dumps(lineage.get("sampling")) if lineage.get("sampling") else None,
        "seed": lineage.get("seed"),
        "student": _revised(scorer.get("student"), scorer.get("student_revision")),
        "KL from": _revised(scorer.get("teacher_source"), scorer.get("teacher_revision")),
        "scored in": _revised(scorer.get("dtype"), scorer.get("engine")),
        "format": _revised(format.get("name"), format.get("hash") or scorer.get("format_hash")),
        "code": ", ".join(f"{name} {version}" for name, version in (lineage.get("code") or {}).items()),
        "derived from version": facts.parent,
        "manifest SHA-256": facts.manifest_sha256,
    }
    yield from ((name, str(value)) for name, value in found.items() if value not in (None, ""))


def _revised(name: str | None, revision: str | None) -> str | None:
    return f"{name} ({revision})" if name and revision else name or revision


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" if place == 0 else "---:" for place in range(len(head))), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: str) -> str:
    return value.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
