"""The first half of the demo: one explanation, its reward token by token, and how well rewards rank."""

from __future__ import annotations

import asyncio
import json

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlt_client.cli.output import nats
from rlt_client.cli.strip import TokenStrips, legend
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse
from rlt_client.schemas.reward import Detail, RewardItem, Score
from rlt_local.demo.problems import in_words
from rlt_local.demo.quality import LEAST_GAIN, LEAST_SHARE, BestOf, Ranking, best_of, good_against_leak
from rlt_local.demo.scene import Scene

__all__ = ["explain", "judge", "score"]

SAMPLES = 4
BEST_OF = 8
BEST_OF_PROBLEMS = 40
SAME = 1e-3  # nats: one score from the teacher's own log-probs, one from the copy in the reward server


async def explain(scene: Scene) -> ExplainResponse:
    """POST /explain: one question and answer, n explanations, ranked by reward."""
    question, answer = scene.first["question"], scene.first["answer"]
    tell = scene.tell
    tell.say(f"The question: {question}   ({in_words(question)}). The answer: {answer}.")
    tell.say(
        "The teacher reads both and explains how one follows from the other. Explanations are ranked by "
        "reward = r_ss − 3 · r_kl: how well the student then gives the answer, less how far the explanation strays "
        "from what the student itself would think."
    )
    tell.command(f"rlt explain '{question}' {answer} -n {SAMPLES} --state {scene.state}")
    body = {"question": question, "answer": answer, "n": SAMPLES, "score": True}
    tell.command(f"KEY=$(cat {scene.state}/keys/local.key)")
    tell.command(scene.curl("teacher", "/explain", json.dumps(body)))
    response = await scene.teacher.explain(ExplainRequest.model_validate(body | {"seed": 0}))
    tell.show(_ranking(response))
    return response


def _ranking(response: ExplainResponse) -> Table:
    rows = Table("", "reward", "r_ss", "r_kl", "explanation", box=None, header_style="dim", padding=(0, 2))
    for place, each in enumerate(response.explanations, start=1):
        parts = each.score.components if each.score else None
        best = each.index == response.best
        rows.add_row(
            Text(f"{place}{' ★' if best else ''}", style="green" if best else "dim"),
            Text(nats(each.score.reward if each.score else None), style="bold"),
            nats(parts.r_ss if parts else None),
            nats(parts.r_kl if parts else None),
            Text(
                (each.text or each.completion or "").strip()
                + ("" if each.gen_status == "complete" else f"  [{each.gen_status}]")
            ),
        )
    return rows


async def score(scene: Scene, response: ExplainResponse) -> bool:
    """POST /reward with token detail: the best and the last explanation, and one that only leaks the answer."""
    tell, traced = scene.tell, scene.traced[0]
    tell.say("The same four explanations, and a hand-written one that only leaks the answer, scored token by token.")
    tell.command(f"rlt score -q '{traced.question}' -a {traced.answer} -e '{traced.leak}' --state {scene.state}")
    item = {"question": traced.question, "answer": traced.answer, "explanation": traced.leak}
    tell.command(scene.curl("reward", "/reward", json.dumps({"items": [item], "detail": "tokens"})))
    completions = [each.completion or "" for each in response.explanations]
    items = [RewardItem(**scene.first, completion=text) for text in completions]
    items.append(RewardItem.model_validate(item))
    scores = await asyncio.gather(*(scene.reward.score(each, detail=Detail.tokens) for each in items))
    tell.show(legend())
    for name, each in {
        "best explanation": scores[0],
        "last of four": scores[-2],
        "leaks the answer": scores[-1],
    }.items():
        tell.show(_strip(name, each))
    tell.gap()
    tell.say(
        "A green answer: the student gives it after reading that. A red thought: only somebody who knows the answer "
        "would have written so, and the reward takes three times that off."
    )
    return _agree(scene, response, scores[:-1])


def _strip(name: str, scored: Score) -> RenderableType:
    head = Text.assemble((name, "bold"), f"   reward {nats(scored.reward)}")
    return Group(head, TokenStrips(scored.token_scores)) if scored.token_scores else head


def _agree(scene: Scene, response: ExplainResponse, scores: list[Score]) -> bool:
    pairs = [(a.score.value(), b.value()) for a, b in zip(response.explanations, scores, strict=True) if a.score]
    apart = max(abs(a - b) for a, b in pairs)
    scene.tell.gap()
    scene.tell.verdict(f"/reward gives what /explain ranked by: {apart:.1e} nats apart at most", good=apart <= SAME)
    return apart <= SAME


async def judge(scene: Scene) -> bool:
    """The two promises of quality, measured."""
    tell = scene.tell
    tell.say(
        f"{BEST_OF_PROBLEMS} held-out problems with {BEST_OF} explanations each, and "
        f"{len(scene.traced)} pairs of hand-written ones, over HTTP."
    )
    tell.gap()
    sampled = await best_of(scene.teacher, scene.problems[:BEST_OF_PROBLEMS], BEST_OF)
    pairs = await good_against_leak(scene.reward, scene.traced)
    tell.verdict(_told_best_of(sampled), good=sampled.good)
    tell.verdict(_told_ranking(pairs), good=pairs.good)
    return sampled.good and pairs.good


def _told_best_of(sampled: BestOf) -> str:
    return (
        f"best of {sampled.n} by reward {sampled.best:+.2f} nats, mean of {sampled.n} {sampled.mean:+.2f}: "
        f"the choice is worth {sampled.gain:.2f} nats (promised: at least {LEAST_GAIN:g})"
    )


def _told_ranking(pairs: Ranking) -> str:
    total = len(pairs.pairs)
    least = round(LEAST_SHARE * total)
    return f"a good trace outranks one that leaks the answer in {pairs.right} of {total} (promised: at least {least})"
