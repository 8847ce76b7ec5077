"""Restart and upgrade replace every replica in the middle of a cycle."""

from __future__ import annotations

import pytest

from tests.chart.toolbox import ROOT
from tests.e2e.installation import DEPLOYMENT, Installation
from tests.e2e.values import RELEASE, values_for

pytestmark = pytest.mark.e2e
PURPOSE = "rollout"

LAST_MIGRATION = max(path.stem for path in (ROOT / "migrations").glob("[0-9]*.sql"))


def test_rollout_restart_charges_every_hour_exactly_once(release: Installation) -> None:
    before, leader = {pod.uid for pod in release.pods()}, release.leader()
    with release.working("restarted") as work:
        release.kubectl.run("rollout", "restart", DEPLOYMENT)
        release.kubectl.rolled_out(RELEASE)
        pods = release.wait_for_replicas(2)
        work.wait_until_charged()
    assert not before & {pod.uid for pod in pods}
    release.leader(after_term=leader.term)
    assert {run.outcome for run in work.runs()} == {"completed"}
    assert release.restarts() == 0


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
