"""`kubectl scale` up, down, to zero and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.installation import DEPLOYMENT, Installation
from tests.e2e.work import add_work

pytestmark = pytest.mark.e2e
PURPOSE = "scale"


@pytest.fixture
def scaled_release(release: Installation) -> Iterator[Installation]:
    """The release with one replica, before and after the test."""
    yield release
    release.scale(1)


def test_replica_runs_as_any_user(scaled_release: Installation) -> None:
    program = "import os; print(os.getuid(), os.getgid())"
    printed = scaled_release.kubectl.run(
        "exec", DEPLOYMENT, "--container", "controller", "--", "python3", "-c", program
    )
    assert printed.split() == ["1000740000", "0"]
    add_work(scaled_release.database, "any-user").wait_until_charged()


def test_scaling_up_keeps_the_leader(scaled_release: Installation) -> None:
    leader = scaled_release.leader()
    assert len(scaled_release.scale(3)) == 3
    assert scaled_release.leader().pod.uid == leader.pod.uid


def test_scaling_down_removes_standbys_first(scaled_release: Installation) -> None:
    scaled_release.scale(3)
    leader = scaled_release.leader()
    (left,) = scaled_release.scale(1)
    assert left.uid == leader.pod.uid
    assert scaled_release.leader().term == leader.term


def test_no_replica_leads_after_scaling_to_zero_until_scaled_back(scaled_release: Installation) -> None:
    leader = scaled_release.leader()
    database = scaled_release.database
    assert scaled_release.scale(0) == []
    assert (database.holders(), database.status()["leader"]) == ([], None)
    assert {row["status"] for row in database.sql("select status from billing_daemon_status")} == {"stopped"}
    assert len(scaled_release.scale(2)) == 2
    scaled_release.leader(after_term=leader.term)
    add_work(database, "scaled-back").wait_until_charged()
