"""Makes a `Status` for tests of the code that shows it."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from controller.billing.status import Status

NOW: Final = datetime(2026, 11, 22, 12, tzinfo=UTC)


def status(**changes: Any) -> Status:  # noqa: ANN401 - fields of any type
    """Returns the status of a healthy installation at NOW, with some fields changed."""
    facts: dict[str, Any] = {
        "leader": "host-1",
        "term": 7,
        "leading_since": NOW - timedelta(hours=3),
        "standbys": ("host-2",),
        "next_cycle_at": NOW + timedelta(minutes=20),
        "waiting_for": "interval",
        "running_since": None,
        "last_completed_at": NOW - timedelta(minutes=40),
        "last_run": {
            "id": 41,
            "outcome": "completed",
            "cause": None,
            "started_at": (NOW - timedelta(minutes=40)).isoformat(),
            "instances": 6,
            "hours": 6,
            "amount": 12.1,
            "failures_by_reason": {},
            "error": "hunter2",
        },
        "heartbeat_age_seconds": 12.4,
        "debts": 3,
        "owed": Decimal("4.50"),
        "failures": 0,
        "charged_instances": 6,
        "suspended": 0,
        "checked_until": NOW,
        "database_time": NOW,
        "replicas": (
            {"instance_id": "host-1", "role": "leader", "since": (NOW - timedelta(hours=3)).isoformat()},
            {"instance_id": "host-2", "role": "standby", "since": (NOW - timedelta(hours=2)).isoformat()},
        ),
    }
    return Status(**(facts | changes))
