"""Whoever does not write `async` can do the same."""

from __future__ import annotations

import inspect

import pytest

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.client import JobsClient, RewardClient, TeacherClient
from rlt_client.jobs import AsyncJobsClient

TWINS = [(AsyncRewardClient, RewardClient), (AsyncTeacherClient, TeacherClient), (AsyncJobsClient, JobsClient)]


@pytest.mark.parametrize(("asynchronous", "blocking"), TWINS, ids=lambda cls: cls.__name__)
def test_every_call_has_a_blocking_twin(asynchronous: type, blocking: type) -> None:
    calls = {
        name
        for name, member in inspect.getmembers(asynchronous, inspect.isfunction)
        if not name.startswith("_") and name != "aclose"
    }
    assert len(calls) > 3
    assert {name for name in calls if not hasattr(blocking, name)} == set()
