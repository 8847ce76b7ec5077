"""A drain whose time is over first: the leader stops after the batch in hand, and its successor goes on from there."""

from __future__ import annotations

import pytest

from tests.e2e.installation import Installation
from tests.e2e.objects import log_events
from tests.e2e.waiting import eventually
from tests.e2e.work import set_pace

pytestmark = pytest.mark.e2e
PURPOSE = "drain"


def test_drain_that_outlasts_its_timeout_leaves_the_rest_to_the_successor(release: Installation) -> None:
    leader = release.leader()
    # A batch a second, forty of them; the drain has three seconds.
    with release.kubectl.following(leader.pod.name) as log, release.working("drained", 1) as work:
        release.kubectl.run("delete", "pod", leader.pod.name, "--wait=false")
        successor = release.leader(after_term=leader.term)
        set_pace(release.database, 0)
        work.wait_until_charged()
        told = log_events(log.until_the_end(60))

    assert "drain.timed_out" in {event["event"] for event in told}
    assert [event["outcome"] for event in told if event["event"] == "drain.completed"] == ["timed_out"]
    assert [(run.term, run.outcome) for run in work.runs()] == [
        (leader.term, "stopped"),
        (successor.term, "completed"),
    ]
    warned = eventually(lambda: release.events("DrainTimedOut"), "an Event tells of it", 30)
    assert warned[-1].pod == leader.pod.name
