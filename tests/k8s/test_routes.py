"""From outside every path of the OpenAPI documents is found at its server, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from k8s.manifests import OVERLAYS, ROOT, find, of_kind

SERVERS = {"teacher": "teacher", "reward": "reward", "jobs": "jobs-api"}
INSIDE = {"/livez", "/readyz", "/metrics", "/version"}
"""Each server has these: for the cluster, not for callers."""

Rule = tuple[str, str]


def paths() -> Iterator[tuple[str, str]]:
    for document, service in SERVERS.items():
        described = json.loads((ROOT / "docs" / "openapi" / f"{document}.json").read_text(encoding="utf-8"))
        for path in described["paths"]:
            yield path, service


def gateway(overlay: str) -> list[Rule]:
    rules = find(overlay, "HTTPRoute", "platform")["spec"]["rules"]
    assert {match["path"]["type"] for rule in rules for match in rule["matches"]} == {"PathPrefix"}
    return [
        (match["path"]["value"], backend["name"])
        for rule in rules
        for match in rule["matches"]
        for backend in rule["backendRefs"]
    ]


def ingress(overlay: str) -> list[Rule]:
    [rule] = find(overlay, "Ingress", "platform")["spec"]["rules"]
    assert {each["pathType"] for each in rule["http"]["paths"]} == {"Prefix"}
    return [(each["path"], each["backend"]["service"]["name"]) for each in rule["http"]["paths"]]


def match(rules: list[Rule], path: str) -> Rule | None:
    """By the longest prefix of whole parts, as both kinds of rules say."""
    fits = [rule for rule in rules if path == rule[0] or path.startswith(rule[0] + "/")]
    return max(fits, key=lambda rule: len(rule[0]), default=None)


@pytest.mark.parametrize(
    "rules",
    [gateway("production"), gateway("production-multi-node"), ingress("single-gpu")],
    ids=["gateway", "multi-node", "ingress"],
)
def test_every_path_leads_to_its_server(rules: list[Rule]) -> None:
    used = set()
    for path, service in paths():
        found = match(rules, path)
        assert (found and found[1]) == (None if path in INSIDE else service), path
        used.add(found)
    assert match(rules, "/") is None
    assert set(rules) <= used, "a prefix that leads nowhere"


def test_both_ways_in_are_the_same() -> None:
    assert sorted(gateway("production")) == sorted(ingress("single-gpu"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ways_in_lead_to_ports_that_are_there(overlay: str) -> None:
    for route in of_kind(overlay, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for ref in rule.get("backendRefs", ()):
                assert ref["port"] in ports(overlay, ref["name"], "port")
    for way in of_kind(overlay, "Ingress"):
        for path in way["spec"]["rules"][0]["http"]["paths"]:
            service = path["backend"]["service"]
            assert service["port"]["name"] in ports(overlay, service["name"], "name")


def ports(overlay: str, service: str, what: str) -> list[object]:
    return [port[what] for port in find(overlay, "Service", service)["spec"]["ports"]]


def test_a_gateway_speaks_https_and_sends_the_rest_there() -> None:
    for overlay in OVERLAYS:
        for route in of_kind(overlay, "HTTPRoute"):
            [parent] = route["spec"]["parentRefs"]
            [listener] = [
                each
                for each in find(overlay, "Gateway", parent["name"])["spec"]["listeners"]
                if each["name"] == parent["sectionName"]
            ]
            assert route["spec"]["hostnames"] == [listener["hostname"]]
            redirects = [f["type"] for rule in route["spec"]["rules"] for f in rule.get("filters", ())]
            assert redirects == (["RequestRedirect"] if listener["protocol"] == "HTTP" else [])
