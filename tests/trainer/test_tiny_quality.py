"""What the reward can be trusted with on the tiny models, by a reward written a second time, straight from the paper.

arXiv 2506.08388: r_ss = mean + .01 min of the student's log-probs of the answer; r_kl = mean + .01 max of the teacher's
log-prob minus the student's over the thoughts; both at temperature .7. The warm-up model is teacher and student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from rlt_trainer.tiny import Problem, good_trace, leaking_trace, problems
from rlt_trainer.tiny.model import load_model
from rlt_trainer.tiny.tokenizer import VOCABULARY, vocabulary

TEMPERATURE = 0.7
LONGEST = 28  # words of a trace and its closing tag
SAMPLES = 8
LAMBDAS = (3.0, 8.0)  # the paper's, and the one that is robust for training the miniature
PROBLEMS = problems(100, seed=1)


@dataclass(frozen=True)
class Sampled:
    problem: Problem
    trace: str
    closed: bool


@pytest.fixture(scope="module")
def model(tiny_warmup: Path) -> LlamaForCausalLM:
    return load_model(tiny_warmup)


@pytest.fixture(scope="module")
def sampled(model: LlamaForCausalLM) -> list[Sampled]:
    """Eight traces for each problem, problem by problem."""
    asked = [problem for problem in PROBLEMS for _ in range(SAMPLES)]
    ids = torch.tensor([encode(f"{problem.question} = {problem.answer} >") for problem in asked])
    begins, noise = ids.shape[1], torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for _ in range(LONGEST):
            chances = torch.softmax(model(input_ids=ids, use_cache=False).logits[:, -1] / TEMPERATURE, -1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=noise)], 1)
    told = [" ".join(VOCABULARY[i] for i in row) for row in ids[:, begins:].tolist()]
    return [Sampled(problem, text.partition("#")[0], "#" in text) for problem, text in zip(asked, told, strict=True)]


def encode(text: str) -> list[int]:
    return [vocabulary()[word] for word in text.split()]


def log_probs(model: LlamaForCausalLM, prompt: list[int], rest: list[int]) -> Tensor:
    """Log-probs [len(rest)] of `rest` after `prompt`, at the temperature of the reward."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + rest]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / TEMPERATURE, -1)[range(len(rest)), rest]


def rewards(model: LlamaForCausalLM, problem: Problem, trace: str, *, closed: bool = True) -> list[float]:
    """One reward for each of `LAMBDAS`."""
    question, thoughts, answer = encode(problem.question), encode(trace), encode(problem.answer)
    student = log_probs(model, question + encode(">"), thoughts + encode("#") + answer)
    teacher = log_probs(model, question + encode("=") + answer + encode(">"), thoughts)
    solution = student[len(thoughts) + 1 :]
    kl = teacher - student[: len(thoughts)] if thoughts else torch.ones(1)
    r_ss, r_kl = solution.mean() + 0.01 * solution.min(), kl.mean() + 0.01 * kl.max()
    return [float(r_ss - weight * r_kl) - (not closed) for weight in LAMBDAS]


@pytest.fixture(scope="module")
def sampled_rewards(model: LlamaForCausalLM, sampled: list[Sampled]) -> Tensor:
    """[100 problems, 8 samples, 2 lambdas]."""
    scored = [rewards(model, one.problem, one.trace, closed=one.closed) for one in sampled]
    return torch.tensor(scored).view(len(PROBLEMS), SAMPLES, len(LAMBDAS))


def test_the_teacher_closes_its_explanations(sampled: list[Sampled]) -> None:
    assert sum(one.closed for one in sampled) >= 0.98 * len(sampled)


def test_the_teacher_is_poor_but_has_something_to_select_from(sampled: list[Sampled]) -> None:
    good = sum(one.trace.replace("~ ", "") == good_trace(one.problem) for one in sampled) / len(sampled)
    leaking = sum("!" in one.trace for one in sampled) / len(sampled)
    assert 0.04 < good < 0.30
    assert 0.05 < leaking < 0.30


def test_the_best_of_eight_is_a_nat_above_their_mean(sampled_rewards: Tensor) -> None:
    gains = sampled_rewards.max(1).values - sampled_rewards.mean(1)
    assert gains.mean(0).min() >= 1.0
    assert (gains >= 1.0).float().mean(0).min() >= 0.9


def test_the_best_of_eight_is_a_good_trace_more_often_than_a_sample_is(
    sampled: list[Sampled], sampled_rewards: Tensor
) -> None:
    good = torch.tensor([one.trace.replace("~ ", "") == good_trace(one.problem) for one in sampled])
    best = good.view(-1, SAMPLES).gather(1, sampled_rewards[..., 0].argmax(1, keepdim=True))
    assert best.float().mean() > 2.5 * good.float().mean()


@pytest.mark.parametrize("weight", range(len(LAMBDAS)), ids=[f"lambda-{value:g}" for value in LAMBDAS])
def test_a_good_trace_outranks_a_leaking_one(model: LlamaForCausalLM, weight: int) -> None:
    assert wins(model, leaking_trace, weight) >= 95


def wins(model: LlamaForCausalLM, rival: Callable[[Problem], str], weight: int) -> int:
    """On how many of the problems the good trace has the higher reward."""
    pairs = [(good_trace(problem), rival(problem), problem) for problem in PROBLEMS]
    return sum(rewards(model, p, good)[weight] > rewards(model, p, bad)[weight] for good, bad, p in pairs)


def test_without_the_kl_term_the_leak_would_win(model: LlamaForCausalLM) -> None:
    """The property that makes the comparison worth its name: by r_ss alone the leak is the better explanation."""

    def r_ss(problem: Problem, trace: str) -> float:
        thoughts = encode(problem.question + " > " + trace + "#")
        return float(log_probs(model, thoughts, encode(problem.answer)).mean())

    assert sum(r_ss(p, good_trace(p)) > r_ss(p, leaking_trace(p)) for p in PROBLEMS) <= 20
