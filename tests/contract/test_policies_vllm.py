"""Policies in a real vLLM: adapters and other full weights, side by side, and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from rlt_client import ExplainRequest, GenerateItem, GenerateRequest, TeacherClient
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import LoadPolicy
from rlt_service.revision import model_revision
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.settings import Settings

pytestmark = pytest.mark.engine
UNLOADED_S = 30.0  # on busy cores
PROBLEM = {"question": "Q 36 A +5 B *3 C +11 D +5", "answer": "17"}


@pytest.fixture
def client(tiny_model: Path, vllm_engine: str, policies_dir: Path) -> Iterator[TeacherClient]:
    given = Settings(model=str(tiny_model), format="mini", engine=[vllm_engine], allowed_roots=[policies_dir])
    with running(lambda: build(given)) as url, TeacherClient(url) as client:
        yield client
        while client.policies().history:
            client.rollback_policy()
        for name in {policy.name for policy in client.policies().policies if not policy.active}:
            client.delete_policy(name)


def test_policies_in_vllm(
    client: TeacherClient,
    tiny_model: Path,
    tiny_adapter: Callable[..., Path],
    merged_model: Callable[..., Path],
    vllm_engine: str,
) -> None:
    """An adapter, and the full weights that it makes of its base, write the same; others do not."""
    base = model_revision(tiny_model)

    def written(policy: str | None = None) -> tuple[str | None, str]:
        reply = client.explain(ExplainRequest(**PROBLEM, policy=policy, temperature=0, max_tokens=27))
        return reply.explanations[0].completion, reply.policy.revision

    plain = written()
    adapters = [client.load_policy(LoadPolicy(name=f"lora-{n}", source=str(tiny_adapter(n)))) for n in (1, 2)]
    texts = [written(f"lora-{n}") for n in (1, 2)]
    assert [revision for _, revision in (plain, *texts)] == [base, *(each.policy.revision for each in adapters)]
    assert len({text for text, _ in (plain, *texts)}) == 3

    merged = merged_model(1)
    client.load_policy(LoadPolicy(name="merged", source=str(merged), kind=ModelKind.full, activate=True))
    assert written() == (texts[0][0], model_revision(merged))
    tokens = client.generate(GenerateRequest(items=[GenerateItem(prompt_token_ids=[1, 2, 3])], max_tokens=2))
    assert tokens.items[0].policy_revision == model_revision(merged)

    assert client.rollback_policy().revision == base
    assert [written(), written("lora-1"), written("lora-2")] == [plain, *texts]
    [engine] = client.policies().engines
    assert (engine.up, engine.weights) == (True, base)
    for n in (1, 2):
        client.delete_policy(f"lora-{n}")
    _unloaded(vllm_engine)


def _unloaded(url: str) -> None:
    """vLLM's own word for it: an adapter goes when nobody holds it any more."""
    limit = time.monotonic() + UNLOADED_S
    while names := [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"] if model["parent"]]:
        assert time.monotonic() < limit, names
        time.sleep(0.05)
