"""Alerts and dashboard query metrics that exist, and each alert fires only for its condition."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from controller.cli import app
from controller.metrics import Metrics
from tests.chart.golden import DASHBOARD, schema
from tests.chart.toolbox import MINIMAL, ROOT, Manifest, Values, one, render
from tests.statuses import status

RULES: Values = {**MINIMAL, "metrics": {"prometheusRule": {"enabled": True}}}

#: The metrics on /metrics. Histograms appear under their base name.
METRICS = {
    "leader_election_master_status",
    "containerstacks_billing_term",
    "containerstacks_billing_cycles_total",
    "containerstacks_billing_cycle_duration_seconds",
    "containerstacks_billing_instances_billed_total",
    "containerstacks_billing_hours_billed_total",
    "containerstacks_billing_amount_billed_total",
    "containerstacks_billing_debts",
    "containerstacks_billing_owed_amount",
    "containerstacks_billing_charged_instances",
    "containerstacks_billing_failing_cycles",
    "containerstacks_billing_cut_short_cycles",
    "containerstacks_billing_failures",
    "containerstacks_billing_suspended_organizations",
    "containerstacks_billing_backlogs",
    "containerstacks_billing_differing_wallets",
    "containerstacks_billing_wallet_difference_amount",
    "containerstacks_billing_halted",
    "containerstacks_billing_other_biller",
    "containerstacks_billing_paused_seconds",
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


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics in a PromQL expression."""
    found = re.findall(r"\b(?:containerstacks|leader|process)_\w+", re.sub(r'"[^"]*"', "", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def expressions(node: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """The PromQL expressions and variable definitions in a dashboard."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"expr", "definition"}:
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_controller_exposes_exactly_these_metrics() -> None:
    shown = Metrics("0.2.0", "lock", leads=lambda: True, read=status).render().decode()
    names = {line.split()[2] for line in shown.splitlines() if line.startswith("# TYPE")}
    assert names >= METRICS - ({"process_resident_memory_bytes"} if sys.platform != "linux" else set())
    assert {name for name in names if not name.startswith("process_")} <= METRICS
    assert 'leader_election_master_status{name="lock"} 1.0' in shown
    assert 'containerstacks_billing_cycles_total{outcome="failed"} 0.0' in shown, (
        "increase() must see the first failure"
    )


def test_alerts_query_metrics_that_exist() -> None:
    assert set().union(*(metrics_in(rule["expr"]) for rule in alerts())) <= METRICS


def test_dashboard_shows_every_metric_and_no_other() -> None:
    shown = set().union(*(metrics_in(e) for e in expressions(json.loads(DASHBOARD.read_text("utf-8")))))
    assert shown == METRICS


def test_dashboard_uses_the_chosen_data_source_and_unique_panel_ids() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        assert panel["type"] == "row" or panel["description"]
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_alert_has_a_summary_a_description_and_a_severity() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}


def test_alerts_can_be_disabled_labelled_and_extended() -> None:
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


def test_schema_lists_the_names_of_the_alerts() -> None:
    node = schema()["properties"]["metrics"]["properties"]["prometheusRule"]["properties"]["disabledAlerts"]
    assert node["items"]["enum"] == [rule["alert"] for rule in alerts()]


def test_single_replica_has_no_alert_for_a_missing_standby() -> None:
    assert "BillingNoStandby" not in [rule["alert"] for rule in alerts({**RULES, "replicas": 1})]


def test_monitors_select_the_replicas() -> None:
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


def expected_labels(rule: Manifest) -> dict[str, str]:
    """The labels of a firing alert. absent() adds those that its selector matches exactly."""
    matched = {"namespace": "billing"} if rule["expr"].startswith("absent(") else {}
    return {**rule["labels"], **matched}


def run_promtool(promtool: str, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_rules(promtool: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(one(render(RULES), "PrometheusRule")["spec"]), "utf-8")
    run_promtool(promtool, "check", "rules", str(file))


# One sample a minute. Two replicas; the first one leads.
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
    f"containerstacks_billing_failing_cycles{FIRST}": "0+0x200",
    f"containerstacks_billing_cut_short_cycles{FIRST}": "0+0x200",
    f"containerstacks_billing_suspended_organizations{FIRST}": "0+0x200",
    f"containerstacks_billing_other_biller{FIRST}": "0+0x200",
    f"containerstacks_billing_database_up{FIRST}": "1+0x200",
    f"containerstacks_billing_database_up{SECOND}": "1+0x200",
    f"containerstacks_billing_term{FIRST}": "3+0x200",
    f"containerstacks_billing_fenced_writes_total{FIRST}": "0+0x200",
}


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
        ({f"containerstacks_billing_failing_cycles{FIRST}": "0+0x120 1+0x80"}, ["BillingCyclesFailing"]),
        ({f"containerstacks_billing_failing_cycles{FIRST}": "0+0x140 1+0x60"}, []),  # tried again at once
        ({f"containerstacks_billing_cut_short_cycles{FIRST}": "0+0x140 1+0x60"}, ["BillingDrainTimedOut"]),
        ({f"containerstacks_billing_failures{FIRST}": "2+0x200"}, ["BillingInstancesNotCharged"]),
        ({f"containerstacks_billing_backlogs{FIRST}": "0+0x100 1+0x100"}, ["BillingBacklog"]),
        ({f"containerstacks_billing_differing_wallets{FIRST}": "0+0x60 1+0x140"}, ["BillingWalletsDiffer"]),
        (
            {f"containerstacks_billing_suspended_organizations{FIRST}": "0+0x60 1+0x140"},
            ["BillingOrganizationsSuspended"],
        ),
        ({f"containerstacks_billing_paused_seconds{FIRST}": "0+0x60 7000+60x140"}, ["BillingPausedTooLong"]),
        ({f"containerstacks_billing_other_biller{FIRST}": "0+0x60 1+0x140"}, ["BillingOtherBiller"]),
        ({f"containerstacks_billing_fenced_writes_total{FIRST}": "0+0x148 1+0x10"}, ["BillingFencedWrites"]),
        ({f"containerstacks_billing_database_up{FIRST}": "0+0x200"}, []),  # the other replica leads
        ({f"containerstacks_billing_database_up{p}": "0+0x200" for p in (FIRST, SECOND)}, ["BillingDatabaseDown"]),
        ({f"containerstacks_billing_term{FIRST}": "3+0x100 4+1x60"}, ["BillingLeadershipUnstable"]),
    ],
)
def test_only_the_expected_alert_fires(
    promtool: str, tmp_path: Path, change: dict[str, str | None], expected: list[str]
) -> None:
    series = {**HEALTHY, **change}
    samples = [{"series": name, "values": values} for name, values in series.items() if values is not None]
    # promtool compares annotations too. Without them the test doesn't repeat the texts of the chart.
    rules = [{key: value for key, value in rule.items() if key != "annotations"} for rule in alerts()]
    firing = [
        {
            "eval_time": "150m",
            "alertname": rule["alert"],
            "exp_alerts": [{"exp_labels": expected_labels(rule)}] if rule["alert"] in expected else [],
        }
        for rule in rules
    ]
    run_rule_tests(promtool, tmp_path, rules, {"interval": "1m", "input_series": samples, "alert_rule_test": firing})


def run_rule_tests(promtool: str, folder: Path, rules: list[Manifest], test: Manifest) -> None:
    rules_file, file = folder / "rules.yaml", folder / "test.yaml"
    rules_file.write_text(yaml.safe_dump({"groups": [{"name": "billing", "rules": rules}]}), "utf-8")
    suite = {"rule_files": [str(rules_file)], "evaluation_interval": test["interval"], "tests": [test]}
    file.write_text(yaml.safe_dump(suite), "utf-8")
    run_promtool(promtool, "test", "rules", str(file))


@pytest.mark.parametrize(
    ("metric", "yesterday", "today", "expected"),
    [
        ("charged_instances", 100, 79, ["BillingFewerCharged"]),
        ("charged_instances", 100, 81, []),
        ("charged_instances", 100, 200, []),
        ("debts", 20, 40, ["BillingDebtsGrowing"]),
        ("debts", 20, 30, []),  # few in absolute numbers
        ("debts", 1000, 1100, []),  # few in proportion
    ],
)
def test_alert_compares_with_the_same_hour_yesterday(
    promtool: str, tmp_path: Path, *, metric: str, yesterday: int, today: int, expected: list[str]
) -> None:
    names = {"BillingFewerCharged", "BillingDebtsGrowing"}
    rules = [
        {key: value for key, value in rule.items() if key != "annotations"}
        for rule in alerts()
        if rule["alert"] in names
    ]
    assert {rule["alert"] for rule in rules} == names
    firing = [
        {
            "eval_time": "26h",
            "alertname": rule["alert"],
            "exp_alerts": [{"exp_labels": expected_labels(rule)}] if rule["alert"] in expected else [],
        }
        for rule in rules
    ]
    # a sample every 5 minutes: a day, and then two hours
    values = f"{yesterday}+0x288 {today}+0x24"
    run_rule_tests(
        promtool,
        tmp_path,
        rules,
        {
            "interval": "5m",
            "input_series": [{"series": f"containerstacks_billing_{metric}{FIRST}", "values": values}],
            "alert_rule_test": firing,
        },
    )


RUNBOOKS = ROOT / "docs" / "runbooks"
SECTIONS = ["What it means", "How bad it is", "First", "Then", "When to call someone"]


def test_every_alert_links_to_a_runbook_with_the_same_sections() -> None:
    linked = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in alerts()}
    assert linked == {name: f"docs/runbooks/{name}.md" for name in linked}
    assert {path.stem for path in RUNBOOKS.glob("Billing*.md")} == set(linked)
    for name in linked:
        text = (RUNBOOKS / f"{name}.md").read_text("utf-8")
        assert text.startswith(f"# {name}\n")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS, name
        assert f"({name}.md)" in (RUNBOOKS / "README.md").read_text("utf-8")


def test_runbooks_have_an_address_of_your_choice() -> None:
    values: Values = {
        **MINIMAL,
        "metrics": {"prometheusRule": {"enabled": True, "runbookBaseUrl": "https://runbooks.example/billing"}},
    }
    for rule in alerts(values):
        assert rule["annotations"]["runbook_url"] == f"https://runbooks.example/billing/{rule['alert']}.md"


def test_commands_of_the_runbooks_exist_with_their_options() -> None:
    texts = [path.read_text("utf-8") for path in RUNBOOKS.glob("*.md")]
    found = {command for text in texts for command in re.findall(r"^containerstacks-billing (.+)$", text, re.MULTILINE)}
    assert len(found) > 8
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for command in found:
        name, *arguments = shlex.split(command, comments=True)
        group.commands[name].make_context(name, arguments)
