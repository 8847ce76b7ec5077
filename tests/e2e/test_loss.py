"""After the leader's pod is lost in the middle of a cycle, another replica leads. No hour is lost or charged twice."""

from __future__ import annotations

import json

import pytest

from tests.e2e import manifests
from tests.e2e.installation import LEADER, REPLICAS, Installation, Leader
from tests.e2e.objects import log_events
from tests.e2e.values import RELEASE, image_name
from tests.e2e.waiting import eventually
from tests.e2e.work import set_pace

pytestmark = pytest.mark.e2e
PURPOSE = "loss"


def wait_for_successor(release: Installation, before: Leader) -> None:
    """Waits until another pod leads and the lost pod is replaced."""
    after = release.leader(after_term=before.term, within_seconds=180)
    assert after.pod.uid != before.pod.uid
    pods = release.wait_for_replicas(2)
    assert before.pod.uid not in {pod.uid for pod in pods}


def test_deleted_leader_finishes_its_cycle_before_the_handover(release: Installation) -> None:
    leader = release.leader()
    with release.kubectl.following(leader.pod.name) as log, release.working("deleted") as work:
        release.kubectl.run("delete", "pod", leader.pod.name, "--wait=false")
        wait_for_successor(release, leader)
        work.wait_until_charged()
        assert [(run.term, run.outcome) for run in work.runs()] == [(leader.term, "completed")]
        logged = log_events(log.until_the_end(60))
    drained = [event for event in logged if event["event"] == "drain.completed"]
    assert [event["outcome"] for event in drained] == ["completed"]
    events = eventually(lambda: release.events("DrainCompleted"), "an Event reports the drain", 30)
    assert events[-1].pod == leader.pod.name


def test_successor_of_a_forcibly_deleted_leader_continues_its_cycle(release: Installation) -> None:
    leader = release.leader()
    with release.working("forced") as work:
        release.kubectl.run("delete", "pod", leader.pod.name, "--grace-period=0", "--force", "--wait=false")
        wait_for_successor(release, leader)
        work.wait_until_charged()
        assert all(run.outcome in {"completed", "stopped", "abandoned"} for run in work.runs()), work.runs()
        assert work.runs()[-1].outcome == "completed"


def test_evicted_leader_hands_over_and_the_budget_protects_the_standby(release: Installation) -> None:
    leader = release.leader()
    (standby,) = (pod for pod in release.pods() if pod.uid != leader.pod.uid)
    wait_for_budget(release)
    with release.working("evicted") as work:
        first = release.kubectl.evict(leader.pod.name)
        second = release.kubectl.evict(standby.name)
        assert first.returncode == 0, first.stderr
        assert second.returncode != 0
        assert "disruption budget" in second.stderr
        set_pace(release.database, 0)
        wait_for_successor(release, leader)
        work.wait_until_charged()
        assert {run.outcome for run in work.runs()} == {"completed"}


def test_label_of_a_lost_leader_goes_to_its_successor(release: Installation) -> None:
    """The lost leader is a pod that never changes its label and is recorded as the current term's leader."""
    leader = release.leader()
    kubectl = release.kubectl
    kubectl.apply(manifests.lost_leader("lost", image_name(release.values["image"])))
    try:
        kubectl.wait("--for", "condition=Ready", "pod/lost", seconds=120)
        (lost,) = (pod for pod in kubectl.pods(LEADER) if pod.name == "lost")
        release.database.sql(
            "update billing_terms set pod = jsonb_build_object('namespace', %s::text, 'name', 'lost', 'uid', %s::text)"
            " where term = %s returning term",
            kubectl.namespace, lost.uid, leader.term,
        )  # fmt: skip
        kubectl.run("delete", "pod", leader.pod.name, "--wait=false")
        successor = release.leader(after_term=leader.term, within_seconds=180)
        eventually(
            lambda: [pod.name for pod in kubectl.pods(LEADER)] == [successor.pod.name],
            "one pod shows that it leads",
            30,
        )
        (lost,) = (pod for pod in kubectl.pods() if pod.name == "lost")
        assert (lost.role, lost.deletion_cost) == ("standby", 0)
    finally:
        kubectl.run("delete", "pod", "lost", "--wait=false")
    release.wait_for_replicas(2)


def test_drained_node_hands_over_to_a_replica_on_another(release: Installation) -> None:
    kubectl = release.kubectl
    listed = kubectl.attempt("get", "nodes", "--output", "json")
    if listed.returncode != 0:
        pytest.skip("no right to list nodes")
    nodes = [item for item in json.loads(listed.stdout)["items"] if not item["spec"].get("unschedulable")]
    if len(nodes) < 2:
        pytest.skip("the cluster has one schedulable node")
    leader = release.leader()
    node = kubectl.read("get", "pod", leader.pod.name)["spec"]["nodeName"]
    try:
        with release.working("node-drained") as work:
            drain = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector", REPLICAS)
            kubectl.run(*drain, "--timeout", "180s", seconds=240)
            wait_for_successor(release, leader)
            work.wait_until_charged()
            assert {run.outcome for run in work.runs()} == {"completed"}
        assert node not in {item["spec"]["nodeName"] for item in kubectl.read("get", "pods", "-l", REPLICAS)["items"]}
    finally:
        kubectl.run("uncordon", node)


def wait_for_budget(release: Installation) -> None:
    """Waits until the disruption controller has counted the replicas."""

    def check() -> bool:
        budget = release.kubectl.read("get", "pdb", RELEASE)
        assert budget["status"].get("disruptionsAllowed") == 1, budget["status"]
        return True

    eventually(check, "the budget allows a disruption", 60)
