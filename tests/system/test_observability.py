"""`deploy/`'s dashboard and alert rules, against the metrics that a real daemon shows."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support import Database, daemon, projector
from support.served import HTTP, address, get

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}
OF_THE_SCRAPE = frozenset({"job", "instance"})
"""Labels that Prometheus itself adds, as it does the metric `up`."""
NOT_SHOWN = {
    "process_max_fds",
    "process_open_fds",
    "process_virtual_memory_bytes",
}


def parsed(expression: str) -> promql.Expr:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return promql.parse(expression)


def shown() -> list[tuple[str, str]]:
    """Each expression of the dashboard, and the legend that its result has."""
    return [(t["expr"], t["legendFormat"]) for panel in PANELS for t in panel["targets"]]


EXPRESSIONS = [expression for expression, _ in shown()] + [rule["expr"] for rule in RULES]


def nodes(expression: str) -> Iterator[promql.Expr]:
    found: list[promql.Expr] = []
    promql.walk(parsed(expression), pre_visit=found.append)
    yield from found


def selectors(expression: str) -> list[promql.VectorSelector]:
    found = [getattr(node, "vector_selector", node) for node in nodes(expression)]
    return [node for node in found if isinstance(node, promql.VectorSelector)]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, set[str]]]:
    """Of each sample of a daemon that has folded something: its family, and its labels."""
    database = Database(tmp_path_factory.mktemp("observed") / "local.db")
    projector("db", "setup", "-d", database.path)
    newest = database.created("A-1")
    with daemon(database.path, options=[*HTTP, "--verify-every", "0.01"]) as running:
        url = address(running)
        running.wait_until_at(newest)
        text = ""
        while "verify_last_round_timestamp_seconds{" not in text:
            _, text = get(f"{url}/metrics")
    return {
        sample.name: (family.name, {*sample.labels})
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_exists_with_its_labels(
    scraped: dict[str, tuple[str, set[str]]], expression: str
) -> None:
    known: set[str] = set()
    for selector in selectors(expression):
        _, labels = ("up", set[str]()) if selector.name == "up" else scraped[selector.name]
        known |= labels | OF_THE_SCRAPE
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels | OF_THE_SCRAPE
    grouped = {
        label
        for node in nodes(expression)
        if isinstance(node, promql.AggregateExpr) and node.modifier
        for label in node.modifier.labels
    }

    assert known
    assert grouped <= known


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_counters_are_asked_for_their_growth_and_gauges_for_what_they_are(expression: str) -> None:
    ranged = {
        node.vector_selector.name: call.func.name
        for call in nodes(expression)
        if isinstance(call, promql.Call)
        for node in call.args
        if isinstance(node, promql.MatrixSelector)
    }
    for selector in selectors(expression):
        grows = selector.name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert (ranged.get(selector.name) in {"rate", "increase"}) == grows


@pytest.mark.parametrize(("expression", "legend"), shown())
def test_a_legend_names_labels_that_are_left(
    scraped: dict[str, tuple[str, set[str]]], expression: str, legend: str
) -> None:
    left = {label for s in selectors(expression) for label in scraped[s.name][1]} | OF_THE_SCRAPE
    for node in nodes(expression):
        if isinstance(node, promql.AggregateExpr):
            left &= {*node.modifier.labels} if node.modifier else set()

    assert {*re.findall(r"{{(\w+)}}", legend)} <= left


def test_every_metric_is_on_the_dashboard(scraped: dict[str, tuple[str, set[str]]]) -> None:
    asked = {
        scraped[selector.name][0] for expression, _ in shown() for selector in selectors(expression)
    }

    assert {family for family, _ in scraped.values()} - asked == NOT_SHOWN


def test_the_dashboard_can_be_imported() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]

    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 36
    assert variables == {"datasource", "instance"}
    assert len(ids) == len({*ids})
    for panel in PANELS:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}
        assert all("$instance" in target["expr"] for target in panel["targets"])


def test_no_panel_lies_on_another() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]

    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_grave_it_is_and_what_to_run(rule: dict[str, Any]) -> None:
    texts = rule["annotations"]

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {*texts} == {"summary", "description"}
    assert re.search(r"`projector [a-z]", texts["description"])


def test_the_commands_that_are_named_exist() -> None:
    texts = [rule["annotations"]["description"] for rule in RULES]
    texts += [panel.get("description", "") for panel in PANELS]
    commands = {
        *re.findall(r"`projector ((?:[a-z]+ ?)+)(?<! )", " ".join(texts)),
    }

    assert {"status", "verify", "quarantine list"} <= commands
    for command in commands:
        projector(*command.split(), "--help")


def test_an_alert_speaks_of_labels_that_are_left() -> None:
    for rule in RULES:
        named = {*re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))}
        for node in nodes(rule["expr"]):
            if isinstance(node, promql.AggregateExpr):
                assert named <= {*node.modifier.labels}
