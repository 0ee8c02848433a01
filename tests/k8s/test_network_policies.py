"""The policies let through what the platform needs, and nothing else."""

from __future__ import annotations

import pytest
from compose.topology import NEEDED
from k8s.manifests import OVERLAYS, of_kind
from k8s.traffic import Peer, allowed, listening, pods

GATEWAY = Peer("gateway", {"app": "gateway"}, {"rlt.dev/gateway": "true"})
PROMETHEUS = Peer("prometheus", {"app": "prometheus"}, {"rlt.dev/monitoring": "true"})
COLLECTOR = Peer("collector", {"app": "collector"}, {"rlt.dev/tracing": "true"})
NEIGHBOUR = Peer("neighbour", {"app.kubernetes.io/name": "rlt-teacher"}, {"kubernetes.io/metadata.name": "other"})
STRANGER = Peer("stranger", {}, {"kubernetes.io/metadata.name": "rlt"})
"""A pod that somebody started in our namespace."""

FROM_OUTSIDE = {
    "gateway": NEEDED["proxy"],  # in a cluster the gateway is the proxy
    "prometheus": frozenset({"teacher", "reward", "jobs-api", "jobs-relay", "jobs-worker", "engine"}),
    "trainer": frozenset({"teacher", "reward"}),
    "backup": frozenset({"postgres"}),
}
"""Whom a cluster adds to those that compose knows."""

INTERNET, DATABASE, METADATA, CLUSTER_API = "93.184.215.14", "10.20.0.5", "169.254.169.254", "10.96.0.1"


def test_there_are_policies_for_every_overlay() -> None:
    for overlay in OVERLAYS:
        [default] = [each for each in of_kind(overlay, "NetworkPolicy") if each["metadata"]["name"] == "default-deny"]
        assert default["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_reach_what_they_need_and_nothing_else(overlay: str) -> None:
    ours = pods(overlay)
    callers = ours | {peer.name: peer for peer in (GATEWAY, PROMETHEUS, NEIGHBOUR, STRANGER)}
    needed = NEEDED | FROM_OUTSIDE
    if "engine-worker" in ours:  # machines of one engine
        needed |= {"engine": frozenset({"engine"}), "engine-worker": frozenset({"engine"})}
    for source in callers.values():
        for target, port in listening(ours):
            want = target.name in needed.get(source.name, ())
            assert allowed(overlay, source, target, port) == want, f"{source.name} → {target.name}:{port}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_what_must_leaves_the_cluster(overlay: str) -> None:
    """Nobody reaches the cloud's metadata or the cluster's API; models come by HTTPS; databases may be outside."""
    production = overlay.startswith("production")
    jobs = {"jobs-api", "jobs-relay", "jobs-worker"}
    for name, peer in pods(overlay).items():
        web = name == "models" or (production and name in jobs)
        assert reaches(overlay, peer, INTERNET, 443) == web, name
        assert reaches(overlay, peer, DATABASE, 5432) == (production and name in jobs | {"migrate"}), name
        assert reaches(overlay, peer, DATABASE, 6379) == (production and name in {"jobs-relay", "jobs-worker"}), name
        for address, port in ((METADATA, 80), (METADATA, 443), (CLUSTER_API, 443), (INTERNET, 80), (INTERNET, 22)):
            assert not reaches(overlay, peer, address, port), f"{name} → {address}:{port}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_spans_go_to_the_collector(overlay: str) -> None:
    traced = {"teacher", "reward", "jobs-api", "jobs-relay", "jobs-worker"} if "production" in overlay else set()
    for name, peer in pods(overlay).items():
        assert allowed(overlay, peer, COLLECTOR, 4318) == (name in traced), name
        assert not allowed(overlay, peer, COLLECTOR, 443), name


def reaches(overlay: str, peer: Peer, address: str, port: int) -> bool:
    return allowed(overlay, peer, Peer("outside", address=address), port)


def test_a_hole_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One policy more, that lets the workers into the engines."""
    from k8s import traffic

    both = {"matchLabels": {"app.kubernetes.io/name": "rlt-jobs-worker"}}
    engine = {"matchLabels": {"app.kubernetes.io/name": "rlt-engine"}}
    hole = [
        {"spec": {"podSelector": both, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": engine}]}]}},
        {"spec": {"podSelector": engine, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": both}]}]}},
    ]
    real = of_kind
    peers = pods("dev")
    assert not allowed("dev", peers["jobs-worker"], peers["engine"], 8000)
    monkeypatch.setattr(traffic, "of_kind", lambda *kinds: real(*kinds) + hole)
    assert allowed("dev", peers["jobs-worker"], peers["engine"], 8000)
