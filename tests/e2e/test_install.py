"""`helm install` ends with Ready replicas and one visible leader."""

from __future__ import annotations

import json
import re

import pytest

from tests.e2e.installation import DEPLOYMENT, LEADER, REPLICAS, Installation
from tests.e2e.objects import address_of, log_events, pod_of
from tests.e2e.values import RELEASE
from tests.e2e.work import add_work

pytestmark = pytest.mark.e2e
PURPOSE = "install"


def test_install_ends_with_both_replicas_ready(release: Installation) -> None:
    assert len(release.pods()) == 2
    assert release.restarts() == 0
    assert release.helm.releases() == [RELEASE]


def test_label_event_lock_and_status_name_one_leader(release: Installation) -> None:
    leader = release.leader()
    roles = {pod.name: pod.role for pod in release.pods()}
    assert roles.pop(leader.pod.name) == "leader"
    assert list(roles.values()) == ["standby"]


def test_logs_selected_by_the_role_label_show_the_election(release: Installation) -> None:
    leader = release.leader()
    elected = [e for e in log_events(release.kubectl.logs("-l", LEADER)) if e["event"] == "leader.elected"]
    assert [(pod_of(e["instance"]), e["term"]) for e in elected][-1:] == [(leader.pod.name, leader.term)]


def test_events_of_the_deployment_name_the_leader(release: Installation) -> None:
    leader = release.leader()
    events = release.kubectl.read("events", "--for", DEPLOYMENT)["items"]
    assert any(e["reason"] == "LeaderElected" and leader.pod.name in e["message"] for e in events)


def test_status_in_a_replica_names_the_leader(release: Installation) -> None:
    printed = release.kubectl.run("exec", DEPLOYMENT, "--", "containerstacks-billing", "status", "--json")
    assert pod_of(json.loads(printed)["leader"]) == release.leader().pod.name


def test_leader_and_standby_are_alive_and_ready(release: Installation) -> None:
    for pod in release.pods():
        for path in "/livez", "/readyz":
            response = release.http(pod, path)
            assert response.status == 200, f"{pod.name}{path}: {response.body}"


def test_every_address_of_a_replica_answers(release: Installation) -> None:
    """On a dual-stack or IPv6-only cluster, the kubelet and Prometheus may use any of them."""
    items = release.kubectl.read("get", "pods", "--selector", REPLICAS)["items"]
    addresses = {entry["ip"] for item in items for entry in item["status"]["podIPs"]}
    for address in addresses:
        url = f"http://{address_of(address)}:8080/readyz"
        assert release.database.bench.get(url).status == 200, url
    if not any(":" in address for address in addresses):
        pytest.skip("the pods have IPv4 addresses only; those answer")


def test_leader_costs_more_to_delete(release: Installation) -> None:
    leader = release.leader()
    costs = {pod.name: pod.deletion_cost or 0 for pod in release.pods()}
    leaders_cost = costs.pop(leader.pod.name)
    assert costs
    assert all(leaders_cost > cost for cost in costs.values())


def test_every_hour_is_charged_exactly_once(release: Installation) -> None:
    add_work(release.database, "plain").wait_until_charged()


def test_helm_test_passes(release: Installation) -> None:
    printed = release.helm.test(RELEASE)
    assert re.search(r"^ok +migrations ", printed, re.MULTILINE), printed
    assert "/readyz 200" in printed
