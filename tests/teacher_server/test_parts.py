"""The pure parts: sampling from logits, reading ids, letting in, ending together."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
import torch

from rlt_client.errors import InvalidRequest, Overloaded, Unavailable
from rlt_client.schemas.common import GenStatus, Problem
from rlt_teacher_server import outcome
from rlt_teacher_server.admission import Admission
from rlt_teacher_server.concurrency import together
from rlt_teacher_server.engine.base import Sample, SampleRequest, made_by
from rlt_teacher_server.engine.sampling import pick, processed_logprobs
from rlt_teacher_server.errors import Reason, item_error
from rlt_teacher_server.model import load_model
from rlt_teacher_server.sampler import Failure, finished_samples

# Sampling


def rows(logits, temperature=1.0, top_k=0, top_p=1.0):
    count = len(logits)
    return processed_logprobs(
        torch.tensor(logits),
        torch.full((count,), float(temperature)),
        torch.full((count,), int(top_k)),
        torch.full((count,), float(top_p)),
    )


def test_temperature_divides_the_logits():
    """Logits 0 and ln 3 at temperature ½ are as 1 to 9."""
    [row] = rows([[0.0, math.log(3)]], temperature=0.5).exp().tolist()
    assert row == pytest.approx([0.1, 0.9])


def test_top_k_keeps_the_likeliest_and_renormalises():
    """Of 1 : 2 : 3 : 4 the upper two remain, as 3 : 4."""
    [row] = rows([[math.log(weight) for weight in (1, 2, 3, 4)]], top_k=2).exp().tolist()
    assert row == pytest.approx([0, 0, 3 / 7, 4 / 7])


def test_top_p_keeps_what_is_needed_to_pass_p():
    """Of 0.1, 0.2, 0.3, 0.4: the 0.4 does not pass 0.6, with the 0.3 it does."""
    [row] = rows([[math.log(weight) for weight in (1, 2, 3, 4)]], top_p=0.6).exp().tolist()
    assert row == pytest.approx([0, 0, 3 / 7, 4 / 7])


def test_top_p_counts_what_top_k_left():
    """Of 2 : 3 : 4 the 4 alone holds 0.44; 0.5 needs the 3 too."""
    [row] = rows([[math.log(weight) for weight in (1, 2, 3, 4)]], top_k=3, top_p=0.5).exp().tolist()
    assert row == pytest.approx([0, 0, 3 / 7, 4 / 7])


def test_the_likeliest_token_always_remains():
    [row] = rows([[0.0, 10.0]], top_p=1e-6).exp().tolist()
    assert row == pytest.approx([0, 1])


def test_at_temperature_0_nothing_is_cut_or_scaled():
    [row] = rows([[math.log(weight) for weight in (1, 2, 3, 4)]], temperature=0, top_k=1, top_p=0.1).exp().tolist()
    assert row == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_rows_of_a_batch_have_their_own_parameters():
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3)
    mixed = processed_logprobs(
        logits, torch.tensor([0.5, 0.0, 2.0]), torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.5, 1.0])
    )
    alone = [rows([[0.0, 1.0, 2.0]], temperature=t, top_k=k)[0] for t, k in ((0.5, 0), (0, 0), (2, 2))]
    assert torch.allclose(mixed, torch.stack(alone))


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.2501, 2), (0.9999999999, 2)])
def test_a_number_falls_on_a_token(uniform, token):
    """0, ¼, ¾, 0: tokens without probability are never drawn, not even at the ends."""
    logprobs = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).log()
    drawn = pick(logprobs, torch.tensor([uniform], dtype=torch.float64), torch.tensor([False]))
    assert drawn.tolist() == [token]


def test_frequencies_are_the_probabilities():
    """20,000 draws: a share of 0.2 has a standard error of 0.003."""
    weights = [0.1, 0.2, 0.3, 0.4]
    draws = random.Random(0)
    uniform = torch.tensor([draws.random() for _ in range(20_000)], dtype=torch.float64)
    drawn = pick(torch.tensor([weights] * 20_000).log(), uniform, torch.zeros(20_000, dtype=torch.bool))
    shares = [(drawn == token).double().mean().item() for token in range(4)]
    assert shares == pytest.approx(weights, abs=0.015)


def test_a_row_of_nan_is_still_a_token():
    drawn = pick(torch.tensor([[math.nan] * 4]), torch.tensor([0.5], dtype=torch.float64), torch.tensor([False]))
    assert 0 <= drawn.item() < 4


# Reading what was sampled


@pytest.fixture(scope="module")
def codec(tiny_model):
    return load_model(str(tiny_model)).codec


ASKED = SampleRequest([1, 2, 3], 10, seed=7)


def read(codec, mini, text, finish="stop"):
    ids = codec.tokenizer.convert_tokens_to_ids(text.split())
    sample = Sample(ids, [-0.5] * len(ids), finish, 0.0, 0.0, 1.0)
    return outcome.finished(codec, mini, ASKED, sample, 2)


@pytest.mark.parametrize(
    ("text", "finish", "status"),
    [
        ("36 A +5 41 #", "stop", GenStatus.complete),
        ("36 A +5 41 #", "length", GenStatus.complete),
        ("#", "stop", GenStatus.complete),
        ("36 A +5", "length", GenStatus.truncated),
        ("36 A +5 $", "stop", GenStatus.malformed),
        ("$", "stop", GenStatus.malformed),
    ],
)
def test_how_it_ended(codec, mini, text, finish, status):
    assert read(codec, mini, text, finish).gen_status is status


def test_the_end_of_turn_is_no_part_of_an_unclosed_explanation(codec, mini):
    explanation = read(codec, mini, "36 A +5 $")
    assert explanation.text is None
    assert explanation.completion == "36 A +5"
    assert explanation.usage.completion_tokens == 4


def test_what_was_not_generated_says_why():
    overflow, other = (
        outcome.failed(ASKED, Problem(type=type, title=""), 0) for type in ("context_overflow", "unknown_token")
    )
    assert overflow.gen_status is GenStatus.context_overflow
    assert other.gen_status is GenStatus.engine_error
    assert overflow.text is overflow.completion is overflow.finish_reason is None


# Letting in


def test_what_does_not_fit_is_refused_at_once():
    admission = Admission(10)
    with admission.admit(6), admission.admit(4):
        assert admission.inside == 10
        with pytest.raises(Overloaded) as caught, admission.admit(1):
            pass
        assert caught.value.retry_after == 1.0
    assert admission.inside == 0


def test_a_failed_request_leaves_too():
    admission = Admission(10)
    with pytest.raises(ValueError, match="no"), admission.admit(6):
        raise ValueError("no")
    assert admission.inside == 0


def test_the_wait_that_is_asked_for_has_bounds():
    admission = Admission(1000)
    with admission.admit(1000):
        pass
    with admission.admit(1000), pytest.raises(Overloaded) as caught, admission.admit(1):
        pass
    assert 1.0 <= (caught.value.retry_after or 0) <= 60.0


# Ending together


async def test_the_first_error_cancels_the_others_and_comes_out_bare():
    cancelled = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def fail() -> None:
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest):
        await together([wait(), fail(), wait()])
    assert cancelled == [True, True]


async def test_results_keep_their_order():
    async def give(value: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return value

    assert await together([give(1, 0.02), give(2, 0.0)]) == [1, 2]


def test_a_reply_names_the_engines_of_all_versions_that_made_it():
    samples = [Sample([1], [-1.0], "stop", 0, 0, 0, engine=name) for name in ("vllm 0.32.0", "vllm 0.31.0", None)]
    assert made_by([*samples, *samples]) == "vllm 0.31.0, vllm 0.32.0"
    assert made_by(samples[2:]) is None


def test_an_engine_that_is_down_is_raised_only_where_nothing_was_finished():
    down = Failure(Problem(type="engine_down", title=""), Unavailable("down"))
    own = Failure(item_error(Reason.unknown_token).problem)
    sample = Sample([1], [-1.0], "stop", 0, 0, 0)
    assert finished_samples([down, sample, own]) == [sample]
    assert finished_samples([own, own]) == []
    with pytest.raises(Unavailable):
        finished_samples([own, down])
