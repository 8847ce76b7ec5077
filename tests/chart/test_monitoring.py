"""Alerts and dashboard: they ask for metrics that exist, and fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.metrics import Metrics
from tests.chart.golden import DASHBOARD, schema
from tests.chart.toolbox import MINIMAL, ROOT, Manifest, Values, one, render

RULES: Values = {**MINIMAL, "metrics": {"prometheusRule": {"enabled": True}}}

#: What /metrics shows; histograms by their base name.
METRICS = {
    "leader_election_master_status",
    "containerstacks_billing_term",
    "containerstacks_billing_cycles_total",
    "containerstacks_billing_cycle_duration_seconds",
    "containerstacks_billing_instances_billed_total",
    "containerstacks_billing_hours_billed_total",
    "containerstacks_billing_amount_billed_total",
    "containerstacks_billing_debts",
    "containerstacks_billing_failures",
    "containerstacks_billing_suspended_organizations",
    "containerstacks_billing_heartbeat_age_seconds",
    "containerstacks_billing_last_cycle_timestamp_seconds",
    "containerstacks_billing_fenced_writes_total",
    "containerstacks_billing_evictions_total",
    "containerstacks_billing_drains_total",
    "containerstacks_billing_database_up",
    "containerstacks_billing_build_info",
    "process_resident_memory_bytes",
}


def alerts(values: Values = RULES) -> list[Manifest]:
    rules: list[Manifest] = one(render(values), "PrometheusRule")["spec"]["groups"][0]["rules"]
    return rules


def named_in(expression: str) -> set[str]:
    found = re.findall(r"\b(?:containerstacks|leader|process)_\w+", re.sub(r'"[^"]*"', "", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def expressions(node: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"expr", "definition"}:
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


@dataclass(frozen=True)
class Facts:
    term: int = 3
    debts: int = 0
    failures: int = 0
    held: int = 0
    heartbeat_age_seconds: float = 30.0
    last_completed_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)


def test_controller_shows_these_metrics() -> None:
    shown = Metrics("0.1.0", "lock", leads=lambda: True, read=Facts).render().decode()
    names = {line.split()[2] for line in shown.splitlines() if line.startswith("# TYPE")}
    assert names >= METRICS - ({"process_resident_memory_bytes"} if sys.platform != "linux" else set())
    assert {name for name in names if not name.startswith("process_")} <= METRICS, "the dashboard shows them all"
    assert 'leader_election_master_status{name="lock"} 1.0' in shown
    assert 'containerstacks_billing_cycles_total{outcome="failed"} 0.0' in shown, "a first failure is an increase"


def test_alerts_ask_for_metrics_that_exist() -> None:
    assert set().union(*(named_in(rule["expr"]) for rule in alerts())) <= METRICS


def test_dashboard_asks_for_metrics_that_exist_and_shows_all_of_them() -> None:
    shown = set().union(*(named_in(e) for e in expressions(json.loads(DASHBOARD.read_text("utf-8")))))
    assert shown == METRICS


def test_dashboard_has_no_data_source_of_its_own_and_no_number_twice() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        assert panel["type"] == "row" or panel["description"]
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_alert_says_what_it_means_and_how_bad_it_is() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_alerts_can_be_left_out_labelled_and_joined() -> None:
    values: Values = {
        **MINIMAL,
        "metrics": {
            "prometheusRule": {
                "enabled": True,
                "disabledAlerts": ["BillingNoStandby"],
                "alertLabels": {"team": "payments", "severity": "info"},
                "extraRules": [{"record": "a:b", "expr": "1"}],
            }
        },
    }
    rules = alerts(values)
    names = [rule.get("alert") for rule in rules]
    assert "BillingNoStandby" not in names
    assert rules[-1] == {"record": "a:b", "expr": "1"}
    assert {r["labels"]["team"] for r in rules[:-1]} == {"payments"}
    assert names[:-1] == [rule["alert"] for rule in alerts() if rule["alert"] != "BillingNoStandby"]


def test_schema_knows_the_alerts_by_name() -> None:
    node = schema()["properties"]["metrics"]["properties"]["prometheusRule"]["properties"]["disabledAlerts"]
    assert node["items"]["enum"] == [rule["alert"] for rule in alerts()]


def test_no_standby_is_no_alarm_where_none_is_wanted() -> None:
    assert "BillingNoStandby" not in [rule["alert"] for rule in alerts({**RULES, "replicas": 1})]


def test_docs_say_what_to_do_about_every_alert() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
    assert [rule["alert"] for rule in alerts() if f"`{rule['alert']}`" not in text] == []


def test_monitors_scrape_the_replicas_and_nothing_else() -> None:
    for kind, name in (("ServiceMonitor", "serviceMonitor"), ("PodMonitor", "podMonitor")):
        objects = render({**MINIMAL, "metrics": {name: {"enabled": True}}})
        spec = one(objects, kind)["spec"]
        source = "Service" if kind == "ServiceMonitor" else "Deployment"
        labels = one(objects, source)["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        (endpoint,) = spec["endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: apt-get install prometheus")
    return found


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(one(render(RULES), "PrometheusRule")["spec"]), "utf-8")
    return file


def test_prometheus_accepts_the_rules(promtool: str, rules_file: Path) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", str(rules_file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


# Samples a minute. Two replicas, the first one leads.
FIRST = '{namespace="billing",pod="containerstacks-billing-5d9f-abcde"}'
SECOND = '{namespace="billing",pod="containerstacks-billing-5d9f-fghij"}'
HEALTHY = {
    f"leader_election_master_status{FIRST}": "1+0x200",
    f"leader_election_master_status{SECOND}": "0+0x200",
    f"containerstacks_billing_build_info{FIRST}": "1+0x200",
    f"containerstacks_billing_build_info{SECOND}": "1+0x200",
    f"containerstacks_billing_heartbeat_age_seconds{FIRST}": "30+0x200",
    f"containerstacks_billing_last_cycle_timestamp_seconds{FIRST}": "0+60x200",
    f"containerstacks_billing_failures{FIRST}": "0+0x200",
    f"containerstacks_billing_suspended_organizations{FIRST}": "0+0x200",
    f"containerstacks_billing_database_up{FIRST}": "1+0x200",
    f"containerstacks_billing_database_up{SECOND}": "1+0x200",
    f"containerstacks_billing_term{FIRST}": "3+0x200",
    f"containerstacks_billing_fenced_writes_total{FIRST}": "0+0x200",
}
FAILED = '{namespace="billing",pod="containerstacks-billing-5d9f-abcde",outcome="failed"}'


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({f"leader_election_master_status{FIRST}": "0+0x200"}, ["BillingNoLeader"]),
        ({f"leader_election_master_status{SECOND}": "1+0x200"}, ["BillingSeveralLeaders"]),
        ({f"containerstacks_billing_build_info{SECOND}": None}, ["BillingNoStandby"]),
        ({f"containerstacks_billing_build_info{p}": None for p in (FIRST, SECOND)}, ["BillingNotScraped"]),
        ({f"containerstacks_billing_heartbeat_age_seconds{FIRST}": "1000+60x200"}, ["BillingHeartbeatStale"]),
        ({f"containerstacks_billing_last_cycle_timestamp_seconds{FIRST}": "1+0x200"}, ["BillingCycleOverdue"]),
        ({f"containerstacks_billing_last_cycle_timestamp_seconds{FIRST}": "0+0x200"}, []),  # no cycle yet
        ({f"containerstacks_billing_cycles_total{FAILED}": "0+0x60 1 2+1x80"}, ["BillingCyclesFailing"]),
        ({f"containerstacks_billing_cycles_total{FAILED}": "0+0x60 1+0x100"}, []),
        ({f"containerstacks_billing_failures{FIRST}": "2+0x200"}, ["BillingInstancesNotCharged"]),
        (
            {f"containerstacks_billing_suspended_organizations{FIRST}": "0+0x60 1+0x140"},
            ["BillingOrganizationsSuspended"],
        ),
        ({f"containerstacks_billing_fenced_writes_total{FIRST}": "0+0x148 1+0x10"}, ["BillingFencedWrites"]),
        ({f"containerstacks_billing_database_up{FIRST}": "0+0x200"}, []),  # one replica has lost it: the other leads
        ({f"containerstacks_billing_database_up{p}": "0+0x200" for p in (FIRST, SECOND)}, ["BillingDatabaseDown"]),
        ({f"containerstacks_billing_term{FIRST}": "3+0x100 4+1x60"}, ["BillingLeadershipUnstable"]),
    ],
)
def test_an_alert_fires_when_it_should_and_only_then(
    promtool: str, rules_file: Path, tmp_path: Path, change: dict[str, str | None], expected: list[str]
) -> None:
    series = {**HEALTHY, **change}
    samples = [{"series": name, "values": values} for name, values in series.items() if values is not None]
    firing = [
        {
            "eval_time": "150m",
            "alertname": rule["alert"],
            "exp_alerts": [] if rule["alert"] not in expected else [_firing(rule)],
        }
        for rule in alerts()
    ]
    suite = {
        "rule_files": [str(rules_file)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": samples, "alert_rule_test": firing}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(suite), "utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    fired = set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr)) if done.returncode else set(expected)
    assert fired == set(expected), done.stdout + done.stderr


def _firing(rule: Manifest) -> Manifest:
    return {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}
