"""The trainers' own code against the server: OpenRLHF 0.11.2 and verifiers 0.4.0, installed by `make clients`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_client.schemas.common import Scope
from rlt_service.keys import Key, create_token, hash_token

PYTHON = Path(__file__).parents[3] / ".clients" / "bin" / "python"
SCRIPTS = Path(__file__).parent / "clients"

Native = Callable[..., dict[str, Any]]


def run(script: str, **given: Any) -> Any:
    command = [str(PYTHON), str(SCRIPTS / script), json.dumps(given)]
    # a cold import of verifiers takes 12 s; the test's own time-out ends one that hangs
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULT ")[2])


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    assert PYTHON.exists(), "run `make clients`"


def key(*, in_path: bool) -> tuple[str, str]:
    token = create_token()
    return token, Key(hash_token(token), "trainer", frozenset({Scope.reward}), in_path=in_path).line()


# OpenRLHF


def test_openrlhf_gets_its_reward(
    compat: httpx.Client, native: Native, sample: dict[str, Any], label: dict[str, str]
) -> None:
    found = run(
        "run_openrlhf.py",
        urls=f"{compat.base_url}/compat/openrlhf/get_reward",
        prompt=sample["prompt"],
        completion=sample["completion"] + "<|im_end|>",
        label=json.dumps(label),
    )
    expected = native(sample)
    assert found["reward"] == [expected["reward"]]
    assert 0 <= found["scores"][0] <= 1
    assert found["extra_logs"]["rlt_r_kl"] == [expected["components"]["r_kl"]]


def test_openrlhf_shards_a_batch_over_servers_with_the_key_in_the_path(
    served: Any, native: Native, golden: list[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    samples = [sample for sample, _ in golden[:5]]
    batch = [
        [s["prompt"] + s["completion"] for s in samples],
        [s["prompt"] for s in samples],
        [{"question": s["question"], "answer": s["answer"]} for s in samples],
    ]
    token, line = key(in_path=True)
    with served('[openrlhf]\nkl = "hosted"', keys=line) as client:
        url = f"{client.base_url}/compat/openrlhf/k/{token}/get_reward"
        found = run("run_openrlhf.py", urls=[url, url], batch=batch)
    assert [len(shard["rewards"]) for shard in found] == [3, 2]
    rewards = [reward for shard in found for reward in shard["rewards"]]
    assert rewards == pytest.approx([native(s)["reward"] for s in samples], abs=1e-5)


@pytest.mark.slow  # five seconds of waiting
def test_openrlhf_has_no_reward_where_there_is_none(served: Any, sample: dict[str, Any]) -> None:
    """It tries five times, a second apart, and then has None: the step fails, and nothing became 0."""
    with served('[openrlhf]\nkl = "hosted"') as client:
        found = run(
            "run_openrlhf.py",
            urls=f"{client.base_url}/compat/openrlhf/get_reward",
            prompt=sample["prompt"],
            completion=sample["completion"],
            label="no question",
        )
        figures = client.get("/metrics").text
    assert 'samples_total{outcome="unreadable_sample",protocol="openrlhf"} 5.0' in figures
    assert found == {"reward": None, "scores": None, "extra_logs": {}}


# verifiers


@pytest.fixture
def dataset(tmp_path: Path, label: dict[str, str]) -> Path:
    row = {**label, "responses_create_params": {"input": [{"role": "user", "content": "Explain."}]}, "level": 3}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return file


@pytest.mark.slow  # its own program takes ten seconds to begin
def test_verifiers_gets_its_reward_and_metrics(
    served: Any, native: Native, sample: dict[str, Any], dataset: Path
) -> None:
    token, line = key(in_path=False)
    with served('[nemo_gym]\nkl = "hosted"', keys=line) as client:
        found = run(
            "run_verifiers.py",
            url=f"{client.base_url}/compat/nemo_gym",
            headers={"Authorization": f"Bearer {token}"},
            dataset=str(dataset),
            reasoning="How do I explain this?",
            text=sample["completion"],
        )
    expected = native(sample)
    assert found["error"] is None
    assert found["rewards"] == {"nemo_gym": expected["reward"]}
    assert found["metrics"]["rlt_r_ss"] == expected["components"]["r_ss"]
    assert found["metrics"]["level"] == 3.0  # the row came back with the reply
    assert sum(found["info"]["reward_components"].values()) == pytest.approx(expected["reward"], abs=1e-6)


@pytest.mark.slow  # its own program takes ten seconds to begin
def test_verifiers_has_an_error_where_there_is_no_reward(
    compat: httpx.Client, sample: dict[str, Any], dataset: Path
) -> None:
    dataset.write_text(dataset.read_text().replace('"answer"', '"solution"'))
    found = run(
        "run_verifiers.py",
        url=f"{compat.base_url}/compat/nemo_gym",
        dataset=str(dataset),
        text=sample["completion"],
    )
    assert found["rewards"] == {"nemo_gym": None}
    assert "TaskError" in found["error"]
    assert found["info"]["_ng_failure_class"] == "unreadable_sample"
