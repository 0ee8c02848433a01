"""Dashboards, recorded rates, alerts and scrape configurations name what the servers really give out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from observability.exposed import JOBS, VLLM, Series, series
from plugins.promql import BadQuery, Query, Selector, parse

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s/components/monitoring"
COMPOSE = ROOT / "docker/observability"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
OF_TARGETS = frozenset({"job", "instance"})
"""Labels that Prometheus itself puts on what it reads."""
ALERTS = frozenset({"alertname", "alertstate", "severity"})
SEVERITIES = {"critical", "warning", "info"}


def groups() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
WATCHED = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def boards() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in DASHBOARDS}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """(where, expression)."""
    for name, expression in RECORDED.items():
        yield name, expression
    for name, rule in WATCHED.items():
        yield name, rule["expr"]
    for file, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"{file}: {panel['title']} {target['refId']}", target["expr"]
        for variable in board["templating"]["list"]:
            if asked := re.fullmatch(r"label_values\((\w+), (\w+)\)", variable.get("definition", "")):
                yield f"{file}: ${variable['name']}", f"count by ({asked[2]}) ({asked[1]})"


QUERIES = list(queries())


@cache
def known() -> dict[str, list[Series]]:
    """By name of a series: what gives it out."""
    found: dict[str, list[Series]] = {}
    for source in [*map(series, JOBS), VLLM]:
        for name in source:
            found.setdefault(name, []).append(source)
    return found


def labels_of(metric: str) -> frozenset[str]:
    """Raises `KeyError` for what nobody gives out."""
    if metric == "up":
        return OF_TARGETS
    if metric == "ALERTS":
        return ALERTS | OF_TARGETS
    if metric in RECORDED:
        query = parse(RECORDED[metric])
        grouped = re.search(r"by \(([\w, ]+)\)", RECORDED[metric])
        assert query.selectors
        return frozenset(re.split(r", ?", grouped[1])) - {"le"} if grouped else frozenset()
    return frozenset().union(*(source[metric] for source in known()[metric])) | OF_TARGETS


@pytest.mark.parametrize(("where", "expression"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_asks_for_what_is_there(where: str, expression: str) -> None:
    query: Query = parse(expression)
    assert query.selectors or "time()" in expression
    for selector in query.selectors:
        labels = labels_of(selector.metric)
        named = {label for label, _, _ in selector.matchers}
        named |= {label for of, label in query.labels if of == selector}
        assert named <= labels, f"{selector.metric} has {sorted(labels)}"
        _check_counters(selector)
        _check_values(selector)


def _check_counters(selector: Selector) -> None:
    """Only what counts up has a rate."""
    if selector.ranged:
        assert re.search(r"_(total|bucket|sum|count)$", selector.metric), selector


def values() -> dict[tuple[str, str], set[str]]:
    """What a label of a metric may say, where that is a list in the code."""
    from rlt_client.schemas.builds import BuildState, ShardState
    from rlt_client.schemas.common import GenStatus, ScoreStatus
    from rlt_jobs.outbox import Queue
    from rlt_reward_server.errors import Reason

    samples, status = {each.value for each in GenStatus}, {each.value for each in ScoreStatus}
    builds = {each.value for each in BuildState}
    return {
        ("rlt_teacher_samples_total", "gen_status"): samples,
        ("rlt_teacher_scores_total", "status"): status,
        ("rlt_reward_items_total", "status"): status,
        ("rlt_reward_items_total", "error"): {each.value for each in Reason},
        ("rlt_jobs_builds", "state"): builds,
        ("rlt_jobs_builds_ended", "state"): builds,
        ("rlt_jobs_shards", "state"): {each.value for each in ShardState},
        ("rlt:jobs_shards", "state"): {each.value for each in ShardState},
        ("rlt_jobs_store_bytes", "kind"): {"free", "total"},
        ("rlt_jobs_leases_total", "end"): _ends(),
        ("rlt_jobs_canary_rung_seconds", "queue"): {each.value for each in Queue},
    }


def _ends() -> set[str]:
    """Of leases, as the worker's code spells them."""
    source = (ROOT / "services/jobs/src/rlt_jobs/builds/work.py").read_text()
    return set(re.findall(r'"(done|lost|given back|failed)"', source))


def _check_values(selector: Selector) -> None:
    listed = values()
    for label, operator, value in selector.matchers:
        if label == "job":
            assert any(re.fullmatch(value, job) for job in [*JOBS, "rlt-engine"]), value
        elif (selector.metric, label) in listed:
            wanted = value.split("|") if "~" in operator else [value]
            every = listed[selector.metric, label]
            assert all(any(re.fullmatch(one, each) for each in every) for one in wanted), (selector.metric, value)


def test_every_metric_of_ours_is_looked_at() -> None:
    """A metric that no dashboard and no alert asks for is one that nobody will find; those are listed, with the why."""
    used = {selector.metric for _, expression in QUERIES for selector in parse(expression).selectors}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    unused = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in known() if name.startswith("rlt_")
    } - families  # fmt: skip
    assert unused == {
        "rlt_reward_compat_answer_in_question_total",  # a property of somebody's data, not of the server
        "rlt_teacher_engine_samples",  # what the engine's own gauges show, for those that lack them
    }


def test_what_scales_the_reward_server_is_one_of_its_metrics() -> None:
    names = {
        name
        for path in (ROOT / "k8s/components").rglob("*hpa*/*.yaml")
        for name in re.findall(r"\brlt_[a-z_]+", path.read_text())
    }
    assert names
    assert names <= set(series("rlt-reward"))


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sum by (route) (rate(rlt_http_requests_total[5m])", "its end"),
        ("rate(rlt_http_requests_total)", "wrong kind"),
        ("sum(rlt_http_requests_total[5m])", "ranges"),
        ("quantile_over(rlt_x)", "function"),
        ("histogram_quantile(0.95, sum by (job) (rate(rlt_x_bucket[5m])))", "buckets"),
        ("rlt_x{state='a', state~'b'}", "nothing is known"),
        ("rlt_x rlt_y", "rlt_y"),
        ("sum by (a) (sum by (b) (rlt_x))", "are left"),
    ],
)
def test_what_is_no_query_is_noticed(query: str, why: str) -> None:
    with pytest.raises(BadQuery, match=why):
        parse(query)


def test_rules_of_compose_and_of_the_operator_are_the_same() -> None:
    """Written by `python -m observability.write_rules` in tests/."""
    assert yaml.safe_load((COMPOSE / "rules.yml").read_text()) == {"groups": groups()}


@pytest.mark.parametrize("name", list(WATCHED))
def test_an_alert_says_what_is_and_what_to_do(name: str) -> None:
    rule = WATCHED[name]
    assert re.fullmatch(r"RLT[A-Z][A-Za-z]+", name)
    assert rule["labels"]["severity"] in SEVERITIES
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    assert re.fullmatch(r"docs/alerts\.md#[a-z0-9-]+", notes["runbook"])
    left = parse(rule["expr"]).by
    for label in re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]):
        reachable = left if left is not None else labels_of(parse(rule["expr"]).selectors[0].metric)
        assert label in reachable, f"{label} is not left of {rule['expr']}"


def test_runbooks_are_there() -> None:
    page = ROOT / "docs/alerts.md"
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    wanted = {rule["annotations"]["runbook"].partition("#")[2] for rule in WATCHED.values()}
    assert wanted == anchors - {"alerts"}


def test_jobs_are_called_alike_everywhere() -> None:
    scraped = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]
    assert {each["job_name"] for each in scraped} == {*JOBS, "prometheus"}
    documents = yaml.safe_load_all((MONITORING / "monitors.yaml").read_text())
    assert {name for document in documents for name in _selected(document)} == {*JOBS, "rlt-engine"}


def _selected(monitor: dict[str, Any]) -> list[str]:
    selector = monitor["spec"]["selector"]
    named = [selector["matchLabels"]["app.kubernetes.io/name"]] if "matchLabels" in selector else []
    return named + [value for one in selector.get("matchExpressions", []) for value in one["values"]]


def test_scrape_targets_are_services_at_their_ports() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for each in yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]:
        for found in each.get("dns_sd_configs", []):
            assert set(found["names"]) <= set(services)


@pytest.mark.parametrize("file", [path.name for path in DASHBOARDS])
def test_a_dashboard_is_one(file: str) -> None:
    board = boards()[file]
    assert file == f"{board['uid']}.json"
    assert board["schemaVersion"] >= 39
    assert "id" not in board  # of one Grafana only
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    first = board["templating"]["list"][0]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    for panel in panels(board):
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources)
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("file", [path.name for path in DASHBOARDS])
def test_panels_lie_beside_each_other(file: str) -> None:
    places = [panel["gridPos"] for panel in boards()[file]["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_dashboards_are_told_apart() -> None:
    found = boards().values()
    assert len({board["uid"] for board in found}) == len({board["title"] for board in found}) == len(found) >= 4


@pytest.mark.parametrize("file", [path.name for path in DASHBOARDS])
def test_legends_name_labels_that_are_left(file: str) -> None:
    for panel in panels(boards()[file]):
        for target in panel["targets"]:
            query = parse(target["expr"])
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                left = query.by if query.by is not None else labels_of(query.selectors[0].metric)
                assert label in left, (panel["title"], target["expr"], label)
