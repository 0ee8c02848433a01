"""Every reward over HTTP, against the golden models' own logits: one plain forward pass, all logits, float64 sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlt_client.prompts import TextCodec
from rlt_client.schemas.reward import RewardItem, RewardResponse, Score, TeacherTokens

Golden = list[tuple[dict[str, Any], dict[str, Any]]]
PROBABILITIES = ["rlpr", "verifree", "info_gain"]


def scores(client: httpx.Client, items: Sequence[RewardItem], **options: Any) -> list[Score]:
    body = {"items": [item.model_dump(exclude_none=True) for item in items], "detail": "tokens", **options}
    response = client.post("/reward", json=body)
    assert response.status_code == 200, response.text
    return RewardResponse.model_validate_json(response.content).items


class Plain:
    """Log-probs by one forward pass a text."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def distributions(self, ids: list[int], temperature: float) -> torch.Tensor:
        """Log-probs of the next token, shape [T, V]."""
        logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return (logits.double() / temperature).log_softmax(-1)

    def of_answer(self, before: str, answer: str, temperature: float) -> list[float]:
        """Golden texts: tags are added tokens, so that what stands between two tags can be encoded by itself."""
        head, tail = (self.tokenizer(part, add_special_tokens=False).input_ids for part in (before, answer))
        logprobs = self.distributions(head + tail, temperature)
        return [logprobs[len(head) - 1 + n, token].item() for n, token in enumerate(tail)]


@pytest.fixture(scope="module")
def student(golden_dir: Path, tokenizer: Any) -> Plain:
    return Plain(golden_dir / "student", tokenizer)


@pytest.fixture(scope="module")
def teacher(golden_dir: Path, tokenizer: Any) -> Plain:
    return Plain(golden_dir / "teacher", tokenizer)


@pytest.fixture(scope="module")
def some(golden: Golden, golden_items: list[RewardItem]) -> list[tuple[RewardItem, str, str]]:
    """(item, the student's text up to the answer, the same without an explanation), 6 times."""
    return [(i, *_before(i, e["student_chat"])) for i, (_, e) in zip(golden_items[:6], golden[:6], strict=True)]


def _before(item: RewardItem, chat: str) -> tuple[str, str]:
    head, opened, rest = chat.rpartition("<|begin_of_thought|>")
    _, closed, end = rest.partition("<|end_of_thought|>")
    between = end.partition(item.answer)[0]
    return chat[: chat.rindex(item.answer)], head + opened + closed + between


@pytest.mark.parametrize("preset", PROBABILITIES)
def test_probability_rewards_are_those_of_the_plain_forward(
    bare: httpx.Client, student: Plain, some: list[tuple[RewardItem, str, str]], preset: str
) -> None:
    temperature = 0.7 if preset == "verifree" else 1.0
    for score, (item, before, empty) in zip(scores(bare, [i for i, *_ in some], spec=preset), some, strict=True):
        ss, baseline = (student.of_answer(text, item.answer, temperature) for text in (before, empty))
        n = len(ss)
        wanted = {
            "rlpr": max(0.0, sum(map(math.exp, ss)) / n - sum(map(math.exp, baseline)) / n),
            "verifree": math.exp(sum(ss)),
            "info_gain": math.exp(sum(ss) / n) - math.exp(sum(baseline) / n),
        }[preset]
        assert score.components
        assert score.token_scores
        assert score.token_scores.answer.logprobs == pytest.approx(ss, abs=1e-4)
        assert score.value() == pytest.approx(wanted + score.components.format, abs=1e-6, rel=1e-4)
        assert score.components.unmapped is None
        if preset == "verifree":
            assert score.components.log_reward == pytest.approx(sum(ss), abs=1e-3)
        else:
            assert score.components.baseline is not None
            assert 0 < score.components.baseline < 1


@pytest.mark.parametrize("preset", PROBABILITIES)
def test_probability_rewards_of_ids_are_those_of_text(
    bare: httpx.Client, golden_items: list[RewardItem], sent: list[TeacherTokens], preset: str
) -> None:
    with_ids = [item.model_copy(update={"teacher": ids}) for item, ids in zip(golden_items, sent, strict=True)]
    by_text, by_ids = (scores(bare, items[:8], spec=preset) for items in (golden_items, with_ids))
    assert [score.value() for score in by_text] == pytest.approx([score.value() for score in by_ids], abs=1e-6)
    assert all(score.kl_source is None for score in by_ids)


@pytest.mark.parametrize("preset", PROBABILITIES)
def test_an_empty_explanation_gains_nothing(bare: httpx.Client, preset: str) -> None:
    item = RewardItem(question="What is 2 times 3?", answer="It is 6.", explanation="\n")
    [score] = scores(bare, [item], spec=preset)
    assert score.flags == ["empty_explanation"]
    assert score.components
    assert score.components.log_reward or score.value() == 0  # exactly: it is compared with itself


@pytest.mark.parametrize("detail", ["none", "components", "tokens"])
@pytest.mark.parametrize("preset", [*PROBABILITIES, "rlt_segments"])
def test_detail_changes_no_reward(
    hosted: httpx.Client, golden_items: list[RewardItem], preset: str, detail: str
) -> None:
    whole, other = (scores(hosted, golden_items[:2], spec=preset, detail=which)[0] for which in ("tokens", detail))
    assert other.value() == pytest.approx(whole.value(), abs=1e-6)
    assert (other.components is None, other.token_scores is None) == (detail == "none", detail != "tokens")


def test_flags_and_errors_are_those_of_every_preset(hosted: httpx.Client) -> None:
    item = {"question": "What is 2 times 3?", "answer": "It is 6."}
    given = [
        RewardItem(**item, explanation="\n\nis <|end_of_thought|>"),
        RewardItem(**item, completion="is carry"),
        RewardItem(**{**item, "answer": " "}, explanation="is"),
        RewardItem(**item, explanation="7 " * 5000),
    ]
    for preset in [*PROBABILITIES, "rlt", "rlt_segments", "ss_only", "kl_only"]:
        tag, unclosed, empty, long = scores(hosted, given, spec=preset)
        assert tag.flags == ["delimiter_in_explanation"]
        assert unclosed.flags == ["closing_tag_missing"]
        assert unclosed.components
        assert unclosed.components.format == -1
        assert [score.error and score.error.type for score in (empty, long)] == ["empty_answer", "too_long"]


# Mappings


@pytest.mark.parametrize(
    ("mapping", "function"),
    [
        ({"kind": "affine", "scale": 2, "offset": 5}, lambda r: 2 * r + 5),
        ({"kind": "exp", "scale": 0.1}, lambda r: math.exp(0.1 * r)),
        ({"kind": "sigmoid", "scale": 0.5, "offset": 3}, lambda r: 1 / (1 + math.exp(-0.5 * r - 3))),
    ],
    ids=["affine", "exp", "sigmoid"],
)
@pytest.mark.parametrize("preset", ["rlt", "rlpr"])
def test_mappings(
    hosted: httpx.Client,
    golden_items: list[RewardItem],
    preset: str,
    mapping: dict[str, Any],
    function: Callable[[float], float],
) -> None:
    for item in golden_items[:4]:  # each alone: in company the last digits differ
        [before], [after] = (
            scores(hosted, [item], spec=spec) for spec in (preset, {"preset": preset, "mapping": mapping})
        )
        assert after.components
        assert after.components.unmapped is not None
        assert after.components.unmapped == pytest.approx(before.value(), abs=1e-6)
        assert after.value() == pytest.approx(function(after.components.unmapped))


def test_a_mapping_is_echoed_in_full(hosted: httpx.Client, golden_items: list[RewardItem]) -> None:
    body = {"items": [golden_items[0].model_dump(exclude_none=True)], "spec": {"mapping": {"kind": "sigmoid"}}}
    spec = hosted.post("/reward", json=body).json()["spec"]
    assert spec["mapping"] == {"kind": "sigmoid", "scale": 1.0, "offset": 0.0}
    assert hosted.post("/reward", json={**body, "spec": "rlt"}).json()["spec"]["mapping"] is None


@pytest.mark.parametrize("kind", ["exp", "sigmoid"])
def test_no_mapping_makes_a_number_of_what_is_none(
    bare: httpx.Client, golden_items: list[RewardItem], sent: list[TeacherTokens], kind: str
) -> None:
    """k3 is infinite here, the reward −∞, and its sigmoid would be 0."""
    teacher = sent[0].model_copy(update={"logprobs": [-9e5] * len(sent[0].logprobs)})
    item = golden_items[0].model_copy(update={"teacher": teacher})
    [score] = scores(bare, [item], spec={"kl": "k3", "mapping": {"kind": kind}})
    assert score.error
    assert score.error.type == "non_finite_reward"


def test_a_map_beyond_all_numbers_is_an_error(bare: httpx.Client, golden_items: list[RewardItem]) -> None:
    spec = {"preset": "ss_only", "mapping": {"kind": "exp", "offset": 1e6}}
    [score] = scores(bare, golden_items[:1], spec=spec)
    assert score.error
    assert score.error.type == "non_finite_reward"


# exact


def test_exact_kl_is_the_sum_over_the_vocabulary(
    hosted: httpx.Client,
    student: Plain,
    teacher: Plain,
    codec: TextCodec,
    golden: Golden,
    golden_items: list[RewardItem],
) -> None:
    wanted = [n for n, (sample, _) in enumerate(golden) if sample["kind"] != "empty"][:5]
    for n, score in zip(wanted, scores(hosted, [golden_items[n] for n in wanted], spec={"kl": "exact"}), strict=True):
        sample, expected = golden[n]
        assert score.token_scores
        think = score.token_scores.think
        before = expected["student_chat"].rpartition("<|begin_of_thought|>")
        head = _ids(codec, before[0] + before[1] + "\n\n")
        prompt = _ids(codec, sample["prompt"])
        mine = student.distributions(head + think.token_ids, 0.7)[len(head) - 1 : -1]
        theirs = teacher.distributions(prompt + think.token_ids, 0.7)[len(prompt) - 1 : -1]
        kl = (theirs.exp() * (theirs - mine)).sum(-1)
        assert think.kl == pytest.approx(kl.tolist(), abs=1e-4)
        assert min(think.kl or [0]) >= -1e-5
        assert score.components
        assert score.components.r_ss is not None
        r_kl = kl.mean().item() + 0.01 * kl.max().item()
        assert score.components.r_kl == pytest.approx(r_kl, abs=1e-4)
        assert score.value() == pytest.approx(score.components.r_ss - 3 * r_kl + score.components.format, abs=1e-3)
        assert think.teacher_logprobs == pytest.approx(
            theirs.gather(1, torch.tensor(think.token_ids)[:, None])[:, 0].tolist(), abs=1e-4
        )


def _ids(codec: TextCodec, text: str) -> list[int]:
    ids: list[int] = codec.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def test_exact_and_k1_differ_in_kl_only(hosted: httpx.Client, golden_items: list[RewardItem]) -> None:
    exact, sampled = (scores(hosted, golden_items[:3], spec={"kl": kl}) for kl in ("exact", "k1"))
    for one, other in zip(exact, sampled, strict=True):
        assert one.components
        assert other.components
        assert one.components.r_ss == pytest.approx(other.components.r_ss, abs=1e-5)
        assert one.kl_source == other.kl_source
        assert one.counts == other.counts


def test_exact_kl_of_an_empty_explanation_is_k1s(hosted: httpx.Client) -> None:
    item = RewardItem(question="What is 2 times 3?", answer="It is 6.", explanation="")
    [exact], [sampled] = (scores(hosted, [item], spec={"kl": kl}) for kl in ("exact", "k1"))
    assert exact.value() == pytest.approx(sampled.value(), abs=1e-6)
    assert exact.components
    assert exact.components.r_kl == 1.01


def test_sent_logprobs_are_no_distribution(
    hosted: httpx.Client, golden_items: list[RewardItem], sent: list[TeacherTokens]
) -> None:
    [score] = scores(hosted, [golden_items[0].model_copy(update={"teacher": sent[0]})], spec={"kl": "exact"})
    assert score.error
    assert score.error.type == "teacher_logprobs_unusable"


# Segments of one tokenizer


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_with_one_tokenizer_segments_are_tokens(
    hosted: httpx.Client, golden_items: list[RewardItem], sent: list[TeacherTokens], kl: str
) -> None:
    with_ids = [item.model_copy(update={"teacher": ids}) for item, ids in zip(golden_items, sent, strict=True)]
    for item in (*golden_items[:6], *with_ids[:6]):  # each alone: k3 blows up the last digits, which company changes
        [token], [segment] = (scores(hosted, [item], spec={"preset": p, "kl": kl}) for p in ("rlt", "rlt_segments"))
        assert segment.value() == pytest.approx(token.value(), abs=1e-5)
        assert segment.counts
        assert segment.token_scores
        assert token.token_scores
        found = segment.token_scores.think.segments
        if not segment.counts.n_think:
            continue
        assert found
        assert segment.counts.n_segments == segment.counts.n_think == len(found.kl)
        assert found.kl == pytest.approx(token.token_scores.think.kl, abs=2e-5)
        assert found.texts == segment.token_scores.think.texts
        assert [*zip(found.starts, found.ends, strict=True)] == [(n, n + 1) for n in range(len(found.kl))]
