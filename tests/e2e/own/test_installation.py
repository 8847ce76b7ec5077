"""A leader is one when label, Event, lock and `status` name the same pod, and not before."""

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
class Cluster:
    """What kubectl would say."""

    there: list[PodView] = field(default_factory=lambda: [POD, STANDBY])
    told: list[EventView] = field(default_factory=lambda: [ELECTED])

    def pods(self, _selector: str) -> list[PodView]:
        return self.there

    def events(self) -> list[EventView]:
        return self.told


@dataclass
class Books:
    """What the database would say."""

    sessions: list[str] = field(default_factory=lambda: ["billing-1-1"])
    leader: str | None = "billing-1-1"

    def holders(self) -> list[str]:
        return self.sessions

    def status(self) -> dict[str, Any]:
        return {"term": 12, "leader": self.leader}


def leader_of(cluster: Cluster | None = None, books: Books | None = None, *, after_term: int = 0) -> Leader:
    stood_in: Any = (cluster or Cluster(), None, books or Books(), {})
    return Installation(*stood_in).leader(after_term=after_term, within_seconds=0)


def test_leader_is_whom_all_four_name() -> None:
    assert leader_of() == Leader(POD, 12)
    assert leader_of(after_term=11).term == 12


def test_leader_of_an_earlier_term_is_not_the_one_that_is_waited_for() -> None:
    with pytest.raises(AssertionError, match="still term 12"):
        leader_of(after_term=12)


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ([replace(POD, role="standby"), STANDBY], r"labelled \[\], pg_locks"),
        ([POD, replace(STANDBY, role="leader")], "labelled"),
        ([replace(POD, terminating=True), STANDBY], r"labelled \[\], pg_locks"),
    ],
)
def test_label_must_agree(there: list[PodView], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        leader_of(Cluster(there=there))


@pytest.mark.parametrize(
    "event",
    [
        replace(ELECTED, pod="billing-2"),
        replace(ELECTED, note="billing-1 leads in term 1"),
        replace(ELECTED, regarding="Pod/billing-1"),
        replace(ELECTED, reason="CycleCompleted"),
    ],
)
def test_event_must_agree(event: EventView) -> None:
    with pytest.raises(AssertionError, match="Events of term 12 name"):
        leader_of(Cluster(told=[event]))


@pytest.mark.parametrize("sessions", [[], ["billing-1-1", "billing-2-1"]])
def test_lock_must_have_one_holder(sessions: list[str]) -> None:
    with pytest.raises(AssertionError, match="holders of the lock by pg_locks"):
        leader_of(books=Books(sessions=sessions))


@pytest.mark.parametrize("named", [None, "billing-2-1"])
def test_status_must_agree(named: str | None) -> None:
    with pytest.raises(AssertionError, match="status names"):
        leader_of(books=Books(leader=named))


def test_replicas_are_waited_for_until_none_is_on_its_way() -> None:
    def waited(*pods: PodView) -> list[PodView]:
        stood_in: Any = (Cluster(there=list(pods)), None, None, {})
        return Installation(*stood_in).wait_for_replicas(2, within_seconds=0)

    assert waited(POD, STANDBY) == [POD, STANDBY]
    for other in replace(STANDBY, ready=False), replace(STANDBY, terminating=True):
        with pytest.raises(AssertionError, match="2 replicas are Ready"):
            waited(POD, other)
    with pytest.raises(AssertionError, match="2 replicas are Ready"):
        waited(POD)
