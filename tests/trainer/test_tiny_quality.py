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
from torch.nn.utils.rnn import pad_sequence
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            max_new_tokens=LONGEST,
            eos_token_id=vocabulary()["#"],
        )
    told = [" ".join(VOCABULARY[i] for i in row) for row in written[:, ids.shape[1] :].tolist()]
    return [Sampled(problem, text.partition("#")[0], "#" in text) for problem, text in zip(asked, told, strict=True)]


def encode(text: str) -> list[int]:
    return [vocabulary()[word] for word in text.split()]


def log_probs(model: LlamaForCausalLM, texts: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    """For each (prompt, rest) the log-probs [len(rest)] of `rest`, at the temperature of the reward."""
    rows = [torch.tensor(prompt + rest) for prompt, rest in texts]
    ids = pad_sequence(rows, batch_first=True)  # on the right: causal attention never sees it
    with torch.inference_mode():
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    chosen = torch.log_softmax(logits / TEMPERATURE, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return [chosen[i, len(prompt) - 1 :][: len(rest)] for i, (prompt, rest) in enumerate(texts)]


def rewards(model: LlamaForCausalLM, written: list[Sampled]) -> Tensor:
    """Rewards [N, 2], one for each of `LAMBDAS`."""
    student, teacher = [], []
    for one in written:
        question, thoughts, answer = encode(one.problem.question), encode(one.trace), encode(one.problem.answer)
        student.append((question + encode(">"), thoughts + encode("#") + answer))
        teacher.append((question + encode("=") + answer + encode(">"), thoughts))
    pairs = zip(log_probs(model, student), log_probs(model, teacher), written, strict=True)
    return torch.stack([reward(student, teacher, closed=one.closed) for student, teacher, one in pairs])


def reward(student: Tensor, teacher: Tensor, *, closed: bool) -> Tensor:
    """`student` [thoughts + tag + answer], `teacher` [thoughts] → [2]."""
    solution = student[len(teacher) + 1 :]
    kl = teacher - student[: len(teacher)] if len(teacher) else torch.ones(1)
    r_ss, r_kl = solution.mean() + 0.01 * solution.min(), kl.mean() + 0.01 * kl.max()
    return r_ss - torch.tensor(LAMBDAS) * r_kl - (0 if closed else 1)


@pytest.fixture(scope="module")
def sampled_rewards(model: LlamaForCausalLM, sampled: list[Sampled]) -> Tensor:
    """[100 problems, 8 samples, 2 lambdas]."""
    return rewards(model, sampled).view(len(PROBLEMS), SAMPLES, len(LAMBDAS))


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
    assert (gains >= 1.0).float().mean(0).min() >= 0.8


def test_the_best_of_eight_is_a_good_trace_more_often_than_a_sample_is(
    sampled: list[Sampled], sampled_rewards: Tensor
) -> None:
    good = torch.tensor([one.trace.replace("~ ", "") == good_trace(one.problem) for one in sampled])
    best = good.view(-1, SAMPLES).gather(1, sampled_rewards[..., 0].argmax(1, keepdim=True))
    assert best.float().mean() > 2.5 * good.float().mean()


def test_a_good_trace_outranks_a_leaking_one(model: LlamaForCausalLM) -> None:
    good = rewards(model, [Sampled(problem, good_trace(problem), True) for problem in PROBLEMS])
    leak = rewards(model, [Sampled(problem, leaking_trace(problem), True) for problem in PROBLEMS])
    assert (good > leak).sum(0).min() >= 95


def test_without_the_kl_term_the_leak_would_win(model: LlamaForCausalLM) -> None:
    """The property that makes the comparison worth its name: by r_ss alone the leak is the better explanation."""

    def r_ss(trace_of: Callable[[Problem], str]) -> Tensor:
        texts = [(encode(f"{p.question} > {trace_of(p)}#"), encode(p.answer)) for p in PROBLEMS]
        return torch.cat(log_probs(model, texts))

    assert (r_ss(good_trace) > r_ss(leaking_trace)).sum() <= 40
