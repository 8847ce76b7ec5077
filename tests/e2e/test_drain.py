"""After a drain times out, the leader stops after its current batch, and its successor continues from there."""

from __future__ import annotations

import pytest

from tests.e2e.installation import Installation
from tests.e2e.objects import log_events
from tests.e2e.waiting import eventually
from tests.e2e.work import set_pace

pytestmark = pytest.mark.e2e
PURPOSE = "drain"


def test_successor_finishes_the_cycle_of_a_drain_that_timed_out(release: Installation) -> None:
    leader = release.leader()
    # The cycle has 40 batches of one second; the drain may take three seconds.
    with release.kubectl.following(leader.pod.name) as log, release.working("drained", 1) as work:
        release.kubectl.run("delete", "pod", leader.pod.name, "--wait=false")
        successor = release.leader(after_term=leader.term)
        set_pace(release.database, 0)
        work.wait_until_charged()
        logged = log_events(log.until_the_end(60))

    assert "drain.timed_out" in {event["event"] for event in logged}
    assert [event["outcome"] for event in logged if event["event"] == "drain.completed"] == ["timed_out"]
    assert [(run.term, run.outcome) for run in work.runs()] == [
        (leader.term, "stopped"),
        (successor.term, "completed"),
    ]
    warned = eventually(lambda: release.events("DrainTimedOut"), "an Event reports the timeout", 30)
    assert warned[-1].pod == leader.pod.name
