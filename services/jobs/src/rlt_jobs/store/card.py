"""The README.md of an exported Hugging Face folder."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["card"]

_TEMPLATE = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
tags:
- reinforcement-learned-teacher
---
# {dataset}, version {number}

{rows} explanations, written by a teacher that is shown the answer and chosen by how much they help a student to find it
(arXiv 2506.08388). Made by RLT Platform.

| | |
|---|---|
{table}

Counts of all samples that were made:

| state | samples |
|---|---|
{counts}

<details><summary>Lineage</summary>

```json
{lineage}
```
</details>
"""


def card(dataset: str, number: int, rows: int, shape: str, facts: dict[str, Any]) -> str:
    """Markdown with the front matter that `datasets.load_dataset(folder)` reads.

    `facts`: selection, scorer (or None), counts, lineage, manifest_sha256.
    """
    scorer = facts["scorer"] or {}
    lines = {
        "rows as": shape,
        "selection": json.dumps(facts["selection"]),
        "student": f"{scorer.get('student')} ({scorer.get('student_revision')})",
        "KL from": scorer.get("teacher_source"),
        "teacher's policies": ", ".join(facts["lineage"].get("policy_revisions", [])),
        "format": f"{scorer.get('format_name')} ({scorer.get('format_hash')})",
        "manifest SHA-256": facts["manifest_sha256"],
    }
    return _TEMPLATE.format(
        dataset=dataset,
        number=number,
        rows=rows,
        table="\n".join(f"| {name} | {_cell(value)} |" for name, value in lines.items()),
        counts="\n".join(f"| {name} | {count} |" for name, count in facts["counts"].items()),
        lineage=json.dumps(facts["lineage"], indent=2, ensure_ascii=False),
    )


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
