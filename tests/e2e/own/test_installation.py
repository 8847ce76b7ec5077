"""`Installation.leader` requires that label, Event, lock and `status` name the same pod."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.e2e.installation import Installation, Leader
from tests.e2e.objects import EventView, PodView

POD = PodView("billing-1", "u-1", "10.0.0.1", "leader", 100, ready=True, terminating=False, restarts=0, waiting=())
STANDBY = replace(POD, name="billing-2", uid="u-2", role="standby", deletion_cost=0)
ELECTED = EventView(
    "LeaderElected", "Deployment/containerstacks-billing", "billing-1", "billing-1 leads in term 12", "3"
)


@dataclass
class FakeKubectl:
    """Returns fixed pods and Events."""

    pod_list: list[PodView] = field(default_factory=lambda: [POD, STANDBY])
    event_list: list[EventView] = field(default_factory=lambda: [ELECTED])

    def pods(self, _selector: str) -> list[PodView]:
        return self.pod_list

    def events(self) -> list[EventView]:
        return self.event_list


@dataclass
class FakeDatabase:
    """Returns fixed holders and a fixed status."""

    sessions: list[str] = field(default_factory=lambda: ["billing-1:4f2a"])
    leader: str | None = "billing-1:4f2a"

    def holders(self) -> list[str]:
        return self.sessions

    def status(self) -> dict[str, Any]:
        return {"term": 12, "leader": self.leader}


def leader_of(
    kubectl: FakeKubectl | None = None, database: FakeDatabase | None = None, *, after_term: int = 0
) -> Leader:
    parts: Any = (kubectl or FakeKubectl(), None, database or FakeDatabase(), {})
    return Installation(*parts).leader(after_term=after_term, within_seconds=0)


def test_leader_is_the_pod_that_all_four_name() -> None:
    assert leader_of() == Leader(POD, 12)
    assert leader_of(after_term=11).term == 12


def test_leader_of_an_earlier_term_does_not_count() -> None:
    with pytest.raises(AssertionError, match="still term 12"):
        leader_of(after_term=12)


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([replace(POD, role="standby"), STANDBY], r"labelled \[\], pg_locks"),
        ([POD, replace(STANDBY, role="leader")], "labelled"),
        ([replace(POD, terminating=True), STANDBY], r"labelled \[\], pg_locks"),
    ],
)
def test_label_must_name_the_same_pod(pods: list[PodView], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        leader_of(FakeKubectl(pod_list=pods))


@pytest.mark.parametrize(
    "event",
    [
        replace(ELECTED, pod="billing-2"),
        replace(ELECTED, note="billing-1 leads in term 1"),
        replace(ELECTED, regarding="Pod/billing-1"),
        replace(ELECTED, reason="CycleCompleted"),
    ],
)
def test_event_must_name_the_same_pod(event: EventView) -> None:
    with pytest.raises(AssertionError, match="Events of term 12 name"):
        leader_of(FakeKubectl(event_list=[event]))


@pytest.mark.parametrize("sessions", [[], ["billing-1:4f2a", "billing-2-1"]])
def test_lock_must_have_exactly_one_holder(sessions: list[str]) -> None:
    with pytest.raises(AssertionError, match="holders of the lock in pg_locks"):
        leader_of(database=FakeDatabase(sessions=sessions))


@pytest.mark.parametrize("named", [None, "billing-2-1"])
def test_status_must_name_the_same_pod(named: str | None) -> None:
    with pytest.raises(AssertionError, match="status names"):
        leader_of(database=FakeDatabase(leader=named))


def test_wait_for_replicas_accepts_only_ready_and_running_ones() -> None:
    def wait_for_two(*pods: PodView) -> list[PodView]:
        parts: Any = (FakeKubectl(pod_list=list(pods)), None, None, {})
        return Installation(*parts).wait_for_replicas(2, within_seconds=0)

    assert wait_for_two(POD, STANDBY) == [POD, STANDBY]
    for other in replace(STANDBY, ready=False), replace(STANDBY, terminating=True):
        with pytest.raises(AssertionError, match="exactly 2 replicas exist"):
            wait_for_two(POD, other)
    with pytest.raises(AssertionError, match="exactly 2 replicas exist"):
        wait_for_two(POD)
