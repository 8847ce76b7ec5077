"""Parsing of kubectl's output. The samples come from Kubernetes 1.36, without the fields that the suite ignores."""

from __future__ import annotations

from typing import Any

from tests.e2e.objects import EventView, PodView, address_of, event_views, log_events, pod_of, pod_views

LEADER: dict[str, Any] = {
    "metadata": {
        "name": "containerstacks-billing-6c9d8f7b5-x2x4z",
        "uid": "u-1",
        "labels": {"billing.containerstacks.io/role": "leader", "pod-template-hash": "6c9d8f7b5"},
        "annotations": {"controller.kubernetes.io/pod-deletion-cost": "100"},
    },
    "status": {
        "phase": "Running",
        "podIP": "10.244.0.7",
        "conditions": [
            {"type": "PodReadyToStartContainers", "status": "True"},
            {"type": "Ready", "status": "True"},
            {"type": "ContainersReady", "status": "True"},
        ],
        "initContainerStatuses": [{"name": "migrate", "restartCount": 1, "state": {"terminated": {"exitCode": 0}}}],
        "containerStatuses": [{"name": "controller", "restartCount": 2, "state": {"running": {}}}],
    },
}
STUCK: dict[str, Any] = {
    "metadata": {"name": "a-stuck-one", "uid": "u-2", "deletionTimestamp": "2026-11-22T21:00:00Z"},
    "status": {
        "conditions": [{"type": "Ready", "status": "False"}],
        "initContainerStatuses": [
            {"name": "migrate", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
        ],
        "containerStatuses": [
            {"name": "controller", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}
        ],
    },
}
PENDING: dict[str, Any] = {"metadata": {"name": "b-new-one", "uid": "u-3"}, "status": {"phase": "Pending"}}


def test_pods_are_sorted_by_name() -> None:
    stuck, pending, leader = pod_views({"items": [LEADER, PENDING, STUCK]})
    assert leader == PodView(
        name="containerstacks-billing-6c9d8f7b5-x2x4z",
        uid="u-1",
        ip="10.244.0.7",
        role="leader",
        deletion_cost=100,
        ready=True,
        terminating=False,
        restarts=3,
        waiting=(),
    )
    assert (stuck.ready, stuck.terminating, stuck.restarts) == (False, True, 3)
    assert stuck.waiting == ("CrashLoopBackOff", "PodInitializing")
    assert (pending.ready, pending.ip, pending.role, pending.deletion_cost) == (False, "", None, None)


def test_events_are_sorted_by_time() -> None:
    from_controller = {
        "reason": "LeaderElected",
        "regarding": {"kind": "Deployment", "name": "containerstacks-billing", "apiVersion": "apps/v1"},
        "related": {"kind": "Pod", "name": "pod-2"},
        "note": "pod-2 leads in term 3",
        "eventTime": "2026-11-22T21:00:05.000000Z",
    }
    from_kubelet = {
        "reason": "Unhealthy",
        "regarding": {"kind": "Pod", "name": "pod-2"},
        "note": "Readiness probe failed",
        "eventTime": None,
        "deprecatedLastTimestamp": "2026-11-22T21:00:01Z",
    }
    first, second = event_views({"items": [from_controller, from_kubelet]})
    assert (first.reason, first.regarding, first.pod) == ("Unhealthy", "Pod/pod-2", "")
    assert second == EventView(
        reason="LeaderElected",
        regarding="Deployment/containerstacks-billing",
        pod="pod-2",
        note="pod-2 leads in term 3",
        at="2026-11-22T21:00:05.000000Z",
    )


def test_log_lines_that_are_not_events_are_skipped() -> None:
    text = """Defaulted container "controller" out of: controller, migrate (init)
{"event": "leader.elected", "term": 3}
[pod/pod-2/controller] {"event": "cycle.started"}
{"other": 1}
{"event": "cut of
[1, 2]
"""
    assert [e["event"] for e in log_events(text)] == ["leader.elected", "cycle.started"]


def test_pod_of_an_instance_id_is_before_the_colon() -> None:
    assert pod_of("containerstacks-billing-6c9d8f7b5-x2x4z:4f2a") == "containerstacks-billing-6c9d8f7b5-x2x4z"
    assert pod_of("") == ""


def test_ipv6_addresses_get_brackets() -> None:
    assert (address_of("10.0.0.1"), address_of("fd00::1")) == ("10.0.0.1", "[fd00::1]")
