"""Who can reach whom, by the network policies of an overlay: what a network plugin that enforces them lets through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from k8s.manifests import Workload, of_kind, workloads

__all__ = ["Peer", "allowed", "listening", "pods"]

NAMESPACE = "rlt"


@dataclass(frozen=True)
class Peer:
    """A pod, by what policies look at; or, with an `address` alone, something outside the cluster."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: Mapping[str, str] = field(default_factory=dict)
    """Labels of its namespace."""
    ports: Mapping[str, int] = field(default_factory=dict)
    address: str | None = None

    @property
    def ours(self) -> bool:
        return self.namespace.get("kubernetes.io/metadata.name") == NAMESPACE


def pods(overlay: str) -> dict[str, Peer]:
    """Of this platform, by component, and one of a trainer's, which its users bring."""
    found = {_name(each): _peer(each) for each in workloads(overlay)}
    return found | {"trainer": Peer("trainer", {"app.kubernetes.io/name": "rlt-trainer"}, _own())}


def _name(workload: Workload) -> str:
    return workload.label.removeprefix("rlt-") if not workload.headless else workload.name


def _peer(workload: Workload) -> Peer:
    return Peer(_name(workload), workload.template["metadata"]["labels"], _own(), workload.ports())


def _own() -> dict[str, str]:
    return {"kubernetes.io/metadata.name": NAMESPACE}


def listening(peers: Mapping[str, Peer]) -> Iterator[tuple[Peer, int]]:
    for peer in peers.values():
        for port in peer.ports.values():
            yield peer, port


def allowed(overlay: str, source: Peer, target: Peer, port: int) -> bool:
    """Whether a TCP connection is let out by the one side and in by the other."""
    policies = [each["spec"] for each in of_kind(overlay, "NetworkPolicy")]
    out = _side(policies, "Egress", source, target, target, port)
    return out and _side(policies, "Ingress", target, source, target, port)


def _side(policies: list[Any], way: str, subject: Peer, other: Peer, target: Peer, port: int) -> bool:
    """What no policy selects is free; what one selects may do only what one of them allows."""
    if not subject.ours:
        return True
    about = [each for each in policies if way in each["policyTypes"] and _selects(each["podSelector"], subject.labels)]
    rules = [rule for policy in about for rule in policy.get(way.lower()) or ()]
    return not about or any(_allows(rule, way, other, target, port) for rule in rules)


def _allows(rule: Mapping[str, Any], way: str, other: Peer, target: Peer, port: int) -> bool:
    peers = rule.get("to" if way == "Egress" else "from")
    ports = rule.get("ports")
    fits = ports is None or any(_is_port(each, target, port) for each in ports)
    return fits and (peers is None or any(_is_peer(each, other) for each in peers))


def _is_port(given: Mapping[str, Any], target: Peer, port: int) -> bool:
    wanted = given.get("port", port)
    number = target.ports.get(wanted) if isinstance(wanted, str) else wanted
    return given.get("protocol", "TCP") == "TCP" and number == port


def _is_peer(given: Mapping[str, Any], peer: Peer) -> bool:
    if "ipBlock" in given:
        return peer.address is not None and _in_block(given["ipBlock"], peer.address)
    if peer.address is not None:
        return False
    near = _selects(given["namespaceSelector"], peer.namespace) if "namespaceSelector" in given else peer.ours
    return near and _selects(given.get("podSelector", {}), peer.labels)


def _in_block(block: Mapping[str, Any], address: str) -> bool:
    def inside(network: str) -> bool:
        return ip_address(address) in ip_network(network)

    return inside(block["cidr"]) and not any(map(inside, block.get("except", ())))


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Raises KeyError for an operator that is not used here."""
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    in_ = {"In": lambda each: labels.get(each["key"]) in each["values"]}
    return exact and all(in_[each["operator"]](each) for each in selector.get("matchExpressions", ()))
