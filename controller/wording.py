"""Formats times, durations and the next cycle for people, in the commands and on the status page."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from controller.billing.status import Status

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400


@dataclass(frozen=True)
class NextCycle:
    """When the next cycle starts: `when` in a few words, `detail` with the time or the reason."""

    when: str
    detail: str


def next_cycle(status: Status) -> NextCycle:
    """Says when the next cycle starts, or what it waits for."""
    due_at, now = status.next_cycle_at, status.database_time
    due = f"due since {time(due_at)}" if due_at else "no cycle has completed yet"
    match status.waiting_for:
        case "leader":
            return NextCycle("waiting for a leader", f"due at {time(due_at)}" if due_at and due_at > now else due)
        case "running":
            since = status.running_since
            return NextCycle("running", f"for {duration((now - since).total_seconds())}" if since else "")
        case "halted":
            return NextCycle("halted", next((each.message for each in status.notices if each.halts), ""))
        case "takeover" if due_at:
            return NextCycle(
                f"in {duration((due_at - now).total_seconds())}", f"{time(due_at)}, after the takeover delay"
            )
        case "interval" if due_at:
            return NextCycle(f"in {duration((due_at - now).total_seconds())}", time(due_at))
        case _:
            return NextCycle("now", due)


def time(moment: datetime) -> str:
    """Returns a time in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units; a negative one as zero."""
    whole = max(int(seconds), 0)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def json_value(value: object) -> str:
    """Converts what `json` can't write: times to RFC 3339, and amounts to text, because floats would round them."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
