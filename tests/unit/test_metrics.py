"""Every metric exists from the start, is documented, and shows what this process did or what the database says."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.billing.status import Status
from controller.billing.values import CycleResult, Outcome, Totals
from controller.lifecycle.drain import DrainOutcome
from controller.metrics import Metrics
from tests.statuses import NOW, status

ROOT = Path(__file__).parents[2]
P = "containerstacks_billing_"
STATUS = status(failures=2, suspended=1, heartbeat_age_seconds=12.5, last_completed_at=NOW)


def metrics(shown: Status | None = STATUS, *, leads: bool = False) -> Metrics:
    return Metrics("1.2.3", "a lock", lambda: leads, lambda: shown)


def samples(rendered: Metrics) -> dict[str, float]:
    """The samples by name and labels, as in the text format."""
    found = {}
    for family in text_string_to_metric_families(rendered.render().decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def result(outcome: Outcome, seconds: float = 2.0) -> CycleResult:
    return CycleResult(outcome, Totals(10, 12, Decimal("1.25"), 1, 1), seconds)


def test_every_outcome_exists_before_it_happens() -> None:
    found = samples(metrics())
    for outcome in ("completed", "failed", "stopped", "deposed"):
        assert found[f'{P}cycles_total{{outcome="{outcome}"}}'] == 0
    for outcome in ("completed", "timed_out"):
        assert found[f'{P}drains_total{{outcome="{outcome}"}}'] == 0
    assert found[f"{P}fenced_writes_total"] == 0
    assert found[f"{P}evictions_total"] == 0


@pytest.mark.parametrize("outcome", list(Outcome))
def test_cycle_counts_by_outcome_and_by_what_it_committed(outcome: Outcome) -> None:
    counted = metrics()
    counted.cycle_ended(result(outcome))
    counted.cycle_ended(result(outcome))
    found = samples(counted)
    assert found[f'{P}cycles_total{{outcome="{outcome}"}}'] == 2
    assert found[f"{P}instances_billed_total"] == 20
    assert found[f"{P}hours_billed_total"] == 24
    assert found[f"{P}amount_billed_total"] == 2.5


def test_duration_counts_completed_cycles_only() -> None:
    counted = metrics()
    for outcome in Outcome:
        counted.cycle_ended(result(outcome, 45.0))
    found = samples(counted)
    assert found[f"{P}cycle_duration_seconds_count"] == 2, "completed, and completed with failures"
    assert found[f'{P}cycle_duration_seconds_bucket{{le="30.0"}}'] == 0
    assert found[f'{P}cycle_duration_seconds_bucket{{le="60.0"}}'] == 2
    assert found[f'{P}cycle_duration_seconds_bucket{{le="600.0"}}'] == 2


def test_fenced_writes_evictions_and_drains_are_counted() -> None:
    counted = metrics()
    counted.write_fenced()
    counted.leader_evicted()
    counted.drain_ended(DrainOutcome.TIMED_OUT)
    found = samples(counted)
    assert found[f"{P}fenced_writes_total"] == 1
    assert found[f"{P}evictions_total"] == 1
    assert found[f'{P}drains_total{{outcome="timed_out"}}'] == 1


@pytest.mark.parametrize("leads", [True, False])
def test_leadership_gauge_follows_the_replica(leads: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert samples(metrics(leads=leads))['leader_election_master_status{name="a lock"}'] == leads


def test_database_gauges_show_the_status() -> None:
    found = samples(metrics())
    assert found[f"{P}database_up"] == 1
    assert found[f"{P}term"] == 7
    assert found[f"{P}debts"] == 3
    assert found[f"{P}failures"] == 2
    assert found[f"{P}suspended_organizations"] == 1
    assert found[f"{P}heartbeat_age_seconds"] == 12.5
    assert found[f"{P}last_cycle_timestamp_seconds"] == 1795348800


def test_database_gauges_are_absent_without_a_status() -> None:
    found = samples(metrics(None))
    assert found[f"{P}database_up"] == 0
    assert not {f"{P}{name}" for name in ("term", "debts", "failures", "heartbeat_age_seconds")} & found.keys()
    assert f"{P}last_cycle_timestamp_seconds" not in found
    assert found[f'{P}cycles_total{{outcome="completed"}}'] == 0


def test_gauge_of_something_that_never_happened_is_absent() -> None:
    found = samples(metrics(status(heartbeat_age_seconds=None, last_completed_at=None)))
    assert f"{P}heartbeat_age_seconds" not in found
    assert f"{P}last_cycle_timestamp_seconds" not in found


def test_scrape_reads_the_status_once() -> None:
    asked: list[Status] = []

    def read() -> Status:
        asked.append(status())
        return asked[-1]

    shown = Metrics("1.2.3", "a lock", lambda: False, read)
    assert asked == []
    shown.render()
    assert len(asked) == 1


def test_build_info_names_both_versions() -> None:
    (build,) = [name for name in samples(metrics()) if name.startswith(f"{P}build_info")]
    assert 'version="1.2.3"' in build
    assert 'python="3.' in build


def test_registry_is_separate_from_the_global_one() -> None:
    metrics()
    metrics()
    assert not [name for name in prometheus_client.REGISTRY._names_to_collectors if "billing" in name]


def documented() -> set[str]:
    rows = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    return set(re.findall(r"^\| `(\w+)", rows, re.MULTILINE)) - {"process_"}


def base(sample: str) -> str:
    return re.sub(r"(_bucket|_count|_sum)$", "", sample.split("{", maxsplit=1)[0])


def test_documentation_lists_exactly_the_existing_metrics() -> None:
    exposed = {base(name) for name in samples(metrics()) if not name.startswith("process_")}
    assert exposed == documented()


def test_alerts_and_dashboard_query_existing_metrics() -> None:
    chart = ROOT / "charts" / "containerstacks-billing"
    texts = [
        path.read_text("utf-8") for path in (*chart.rglob("prometheusrule.yaml"), *chart.rglob("dashboards/*.json"))
    ]
    asked = set(re.findall(rf"\b(?:{P}\w+|leader_election_\w+)", "\n".join(texts)))
    assert asked
    assert {base(name) for name in asked} <= documented()
