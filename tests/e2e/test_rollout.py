"""Restart and upgrade replace every replica in the middle of a cycle."""

from __future__ import annotations

import pytest

from tests.chart.toolbox import ROOT
from tests.e2e.installation import DEPLOYMENT, Installation
from tests.e2e.objects import PodView
from tests.e2e.values import RELEASE, values_for
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.e2e
PURPOSE = "rollout"

LAST_MIGRATION = max(path.stem for path in (ROOT / "migrations").glob("[0-9]*.sql"))


def test_rollout_restart_charges_every_hour_exactly_once(release: Installation) -> None:
    replaced, leader = release.pods(), release.leader()
    seen, unhealthy = len(release.own_events()), unhealthy_reports(release, replaced)
    with release.working("restarted") as work:
        release.kubectl.run("rollout", "restart", DEPLOYMENT)
        release.kubectl.rolled_out(RELEASE)
        pods = release.wait_for_replicas(2)
        work.wait_until_charged()
    assert not {pod.uid for pod in replaced} & {pod.uid for pod in pods}
    release.leader(after_term=leader.term)
    assert {run.outcome for run in work.runs()} == {"completed"}
    assert release.restarts() == 0
    # Standbys are replaced first, so the leader hands over once.
    reasons = [event.reason for event in release.own_events()[seen:] if not event.reason.startswith("Cycle")]
    assert sorted(reasons) == ["DrainCompleted", "DrainStarted", "LeaderElected", "LeadershipResigned"]
    assert unhealthy_reports(release, replaced) == unhealthy, "a drain fails no probe"


def unhealthy_reports(release: Installation, pods: list[PodView]) -> list[str]:
    """The kubelet's Events about failed probes of these pods."""
    names = {f"Pod/{pod.name}" for pod in pods}
    return [e.note for e in release.kubectl.events() if e.reason == "Unhealthy" and e.regarding in names]


def test_quiet_time_has_no_events(release: Installation) -> None:
    """Several cycles find nothing to charge."""
    release.leader()
    runs = "select count(*)::int as runs from billing_runs where outcome = 'completed'"
    seen, first = len(release.own_events()), release.database.one(runs)["runs"]
    eventually(lambda: release.database.one(runs)["runs"] >= first + 3, "three more cycles complete", 60)
    assert [event.note for event in release.own_events()[seen:]] == []


def test_upgrade_applies_a_missing_migration(release: Installation) -> None:
    leader = release.leader()
    with release.working("upgraded") as work:
        # Simulate a previous version without the last migration. Every migration is safe to repeat.
        release.database.sql("delete from billing_schema_migrations where name = %s returning name", LAST_MIGRATION)
        upgraded = values_for("upgraded", release.values["image"]["repository"])
        release.helm.upgrade(RELEASE, {**upgraded, "image": release.values["image"]})
        pods = release.wait_for_replicas(2)
        work.wait_until_charged()
    applied = "select applied_at from billing_schema_migrations where name = %s"
    assert len(release.database.sql(applied, LAST_MIGRATION)) == 1
    logs = [release.kubectl.logs(pod.name, "--container", "migrate") for pod in pods]
    assert sum(f"applied {LAST_MIGRATION}" in log for log in logs) == 1, logs
    release.leader(after_term=leader.term)
    assert {run.outcome for run in work.runs()} == {"completed"}
