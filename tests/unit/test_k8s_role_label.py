"""Only one pod shows that it leads, even if a former leader's node is unreachable or requests arrive late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from controller.errors import DatabaseUnreachableError
from controller.k8s.api import Api, ApiError, FailureKind
from controller.k8s.pod import Pod
from controller.k8s.role_label import ASSERT_SECONDS, SETTLE_SECONDS, RoleLabels

A, B, C = (Pod("billing", name, f"uid-{name}", "billing") for name in "abc")


@dataclass
class Cluster:
    """Pods with their labels, by uid, and one clock. The test decides when a held patch arrives."""

    now: float = 0.0
    labels: dict[str, str] = field(default_factory=lambda: {"uid-a": "standby", "uid-b": "standby", "uid-c": "standby"})
    requests: list[str] = field(default_factory=list)
    hold: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)

    @property
    def leaders(self) -> list[str]:
        return [uid for uid, role in self.labels.items() if role == "leader"]


@dataclass
class Connection:
    """The requests of one replica, as the API server carries them out."""

    cluster: Cluster
    pod: Pod
    failure: ApiError | None = None

    def show_role(self, role: str, deletion_cost: int, _seconds: float) -> None:
        assert deletion_cost == {"leader": 100, "standby": 0}[role]
        self._fail()
        self.cluster.requests.append(f"{self.pod.name} is {role}")
        self.cluster.labels[self.pod.uid or ""] = role

    def show_former_leader(self, former: Pod, deletion_cost: int, _seconds: float) -> None:
        assert deletion_cost == 0
        self._fail()
        self.cluster.requests.append(f"{self.pod.name} relabels {former.name}")

        def arrive() -> None:
            if self.cluster.labels.get(former.uid or "") == "leader":
                self.cluster.labels[former.uid or ""] = "standby"

        if self.cluster.hold:
            self.cluster.held.append(arrive)
        else:
            arrive()

    def _fail(self) -> None:
        if self.failure:
            raise self.failure


class Replica:
    """One replica's labels; `run` sends what is due now."""

    def __init__(self, cluster: Cluster, pod: Pod, history: list[Pod]) -> None:
        self.cluster, self.pod, self.history = cluster, pod, history
        self.leads = False
        self.connection = Connection(cluster, pod)
        self.labels = RoleLabels(pod, lambda: self.leads, self._former, lambda: cluster.now)
        self.run()

    def _former(self, term: int) -> list[Pod]:
        return [pod for pod in reversed(self.history[: term - 1]) if pod != self.pod]

    def elect(self) -> None:
        self.history.append(self.pod)
        self.leads = True
        self.labels.want("leader", len(self.history))

    def depose(self) -> None:
        self.leads = False
        self.labels.want("standby")

    def run(self) -> None:
        while (due := self.labels.due_at()) is not None and due <= self.cluster.now:
            self.labels.send(cast("Api", self.connection), 3.0)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def replicas(cluster: Cluster) -> tuple[Replica, Replica, Replica]:
    history: list[Pod] = []
    a, b, c = (Replica(cluster, pod, history) for pod in (A, B, C))
    cluster.requests.clear()
    return a, b, c


def test_successor_relabels_a_leader_whose_node_is_away_after_its_own_label_is_set(cluster: Cluster) -> None:
    a, b, _ = replicas(cluster)
    a.elect()
    a.run()
    b.elect()
    b.run()
    assert cluster.requests == ["a is leader", "b is leader", "b relabels a"]
    assert cluster.leaders == ["uid-b"]


def test_leaders_lost_one_after_the_other_are_all_relabelled(cluster: Cluster) -> None:
    a, b, c = replicas(cluster)
    a.elect()
    a.run()
    b.elect()  # it is lost before it can do more than set its own label
    b.connection.show_role("leader", 100, 3.0)
    c.elect()
    c.run()
    assert cluster.leaders == ["uid-c"]


def test_patch_that_arrives_after_the_former_leader_leads_again_is_corrected(cluster: Cluster) -> None:
    """A, B and A lead within a second. B's patch of A's label arrives last."""
    a, b, _ = replicas(cluster)
    a.elect()
    a.run()
    cluster.hold = True
    b.elect()
    b.run()
    b.depose()
    a.depose()
    a.elect()
    cluster.hold = False
    a.run()
    b.run()
    assert cluster.leaders == ["uid-a"]
    (late,) = cluster.held
    late()
    assert cluster.leaders == [], "uid and label match, so the API server can't refuse the patch"
    cluster.now += SETTLE_SECONDS
    a.run()
    assert cluster.leaders == ["uid-a"]


def test_leader_asserts_its_label_every_minute_and_a_standby_never(cluster: Cluster) -> None:
    a, b, _ = replicas(cluster)
    a.elect()
    a.run()
    b.run()
    cluster.requests.clear()
    for _ in range(600):
        cluster.now += 1
        a.run()
        b.run()
    assert len(cluster.requests) == pytest.approx(600 / ASSERT_SECONDS, abs=1)
    assert set(cluster.requests) == {"a is leader"}


def test_replica_that_no_longer_leads_changes_no_label(cluster: Cluster) -> None:
    a, b, _ = replicas(cluster)
    a.elect()
    a.run()
    b.elect()
    b.leads = False  # past its deadline, before the elector has reported it
    b.run()
    assert "b relabels a" not in cluster.requests


def test_unreadable_history_is_read_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = replicas(cluster)
    a.elect()
    a.run()
    b.elect()
    read, failures = b._former, iter([DatabaseUnreachableError("timeout")])

    def unreliable(term: int) -> list[Pod]:
        for failure in failures:
            raise failure
        return read(term)

    monkeypatch.setattr(b.labels, "_former_leaders", unreliable)
    with pytest.raises(DatabaseUnreachableError):
        b.run()
    b.run()
    assert cluster.leaders == ["uid-b"]


@pytest.mark.parametrize(("kind", "again"), [(FailureKind.UNAVAILABLE, True), (FailureKind.FORBIDDEN, False)])
def test_former_leader_is_tried_again_only_if_that_may_help(cluster: Cluster, kind: FailureKind, again: bool) -> None:  # noqa: FBT001
    a, b, _ = replicas(cluster)
    a.elect()
    a.run()
    b.elect()
    b.labels.send(cast("Api", b.connection), 3.0)
    b.connection.failure = ApiError(kind, "refused")
    with pytest.raises(ApiError):
        b.run()
    b.connection.failure = None
    b.run()
    assert (cluster.leaders == ["uid-b"]) is again


@pytest.mark.parametrize("stranger", [Pod("elsewhere", "a", "uid-a"), Pod("billing", "a", None)], ids=str)
def test_pods_of_other_namespaces_and_without_uid_are_left_alone(cluster: Cluster, stranger: Pod) -> None:
    labels = RoleLabels(B, lambda: True, lambda _term: [stranger], lambda: cluster.now)
    labels.want("leader", 7)
    for _ in range(2):
        labels.send(cast("Api", Connection(cluster, B)), 3.0)
    assert cluster.requests == ["b is leader"]
