"""The second half of the demo: a build of many explanations, exported as a data set."""

from __future__ import annotations

import json

from rich.console import Group, RenderableType
from rich.text import Text

from rlt_client.cli.builds import card
from rlt_client.cli.exports import export_version
from rlt_client.cli.output import nats
from rlt_client.cli.progress import follow
from rlt_client.schemas.builds import Build, BuildRequest, BuildState, SampleRow, SampleSort, Source
from rlt_local.demo.scene import Scene

__all__ = ["build", "export"]

DATASET = "chains"
SAMPLES = 4
LONGEST_SHOWN = 400


async def build(scene: Scene) -> Build:
    """POST /uploads, POST /builds, and the progress of it."""
    tell, file = scene.tell, scene.problems_file
    total = len(scene.problems) * SAMPLES
    tell.say(
        f"{len(scene.problems)} problems × {SAMPLES} explanations = {total} samples, each scored; the "
        f"best of each problem becomes a row. Kill a worker meanwhile if you like: nothing gets lost "
        f"or doubled."
    )
    tell.command(f"rlt build create {file} --dataset {DATASET} -n {SAMPLES} --watch --state {scene.state}")
    upload = await scene.jobs.upload(file)
    queued = await scene.jobs.create_build(BuildRequest(dataset=DATASET, source=Source(upload=upload.id), n=SAMPLES))
    tell.console.print()
    ended = await follow(scene.jobs, queued.id)
    tell.show(card(ended))
    complete = ended.state is BuildState.done and ended.counts.samples == total and ended.counts.missing == 0
    tell.gap()
    tell.verdict(f"every one of {total} samples has its outcome", good=complete)
    return ended


async def export(scene: Scene, ended: Build) -> bool:
    """The version as a Hugging Face folder and as JSON lines, and what is best and worst in it."""
    tell = scene.tell
    name = f"{DATASET}-build{ended.id}"
    folder, lines = scene.out / name, scene.out / f"{name}.jsonl"
    for target, kind in ((folder, "hf"), (lines, "jsonl")):
        tell.command(f"rlt build export {ended.id} --as {kind} -o {target} --state {scene.state}")
        _, size = await export_version(scene.jobs, ended.id, None, target, kind, "messages")
        tell.result(f"{target}{'/' if kind == 'hf' else ''}   {size:,} bytes")
    tell.command(f"python -c \"import datasets; print(datasets.load_dataset('{folder}'))\"")
    rows = lines.read_text(encoding="utf-8").splitlines()
    tell.gap()
    tell.say("The first row, as a student is trained on it:")
    tell.show(_messages(rows[0]))
    tell.gap()
    tell.say("The best trace of the build, and the worst:")
    tell.command(scene.curl("jobs", f"/builds/{ended.id}/samples?sort=reward&descending=true&texts=true&limit=1"))
    await _show_extremes(scene, ended)
    tell.gap()
    tell.verdict(f"{len(rows)} rows, one for each problem", good=len(rows) == _rows_wanted(ended))
    return len(rows) == _rows_wanted(ended)


def _rows_wanted(ended: Build) -> int:
    """The best of each problem; with four tries none of these is left without a complete and scored explanation."""
    return ended.counts.problems


def _messages(line: str) -> RenderableType:
    messages = json.loads(line)["messages"]
    return Group(
        *(Text.assemble((f"{each['role']:>9}  ", "bold"), each["content"][:LONGEST_SHOWN]) for each in messages)
    )


async def _show_extremes(scene: Scene, ended: Build) -> None:
    for name, descending in (("best", True), ("worst", False)):
        rows = scene.jobs.samples(ended.id, sort=SampleSort.by_reward, descending=descending, texts=True, page=1)
        async for row in rows:
            scene.tell.show(_trace(name, row))
            break


def _trace(name: str, row: SampleRow) -> RenderableType:
    parts = f"answer {nats(row.ss_mean)} nats a token, KL {nats(row.kl_mean)} nats a token"
    return Group(
        Text.assemble((f"{name:<6}", "bold"), f"reward {nats(row.reward)}  ", (parts, "dim")),
        Text.assemble((f"{row.question} → {row.answer}", "dim")),
        Text((row.explanation or "").strip()),
    )
