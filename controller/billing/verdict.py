"""The verdict on billing: OK, attention or down, with the reasons. `status` and the status page show it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from controller.billing.status import Status

#: After this time without a heartbeat the application resumes its own billing.
FALLBACK_SECONDS: Final = 5400.0
#: After this time the heartbeat counts as late, long before the application resumes its own billing.
HEARTBEAT_LATE_SECONDS: Final = 900.0
#: A leader starts a due cycle within seconds, so an operator should check a longer delay.
OVERDUE_SECONDS: Final = 300.0
#: The guard checks the charges of a cycle right after it.
UNGUARDED_SECONDS: Final = 900.0


class Level(StrEnum):
    """`down`: customers are not being billed. `attention`: some are not, or an operator should check something."""

    OK = "ok"
    ATTENTION = "attention"
    DOWN = "down"


@dataclass(frozen=True)
class Verdict:
    """The level, and every reason for it, the most serious first. Only a pause's reason may name a customer."""

    level: Level
    reasons: tuple[str, ...]

    @property
    def line(self) -> str:
        """The verdict in one line."""
        return f"{self.level.upper()}: {'; '.join(self.reasons)}"


def verdict(status: Status) -> Verdict:
    """Judges a status."""
    down = _why_down(status)
    attention = _why_attention(status)
    if down:
        return Verdict(Level.DOWN, (*down, *attention))
    if attention:
        return Verdict(Level.ATTENTION, attention)
    return Verdict(Level.OK, (f"{status.leader} leads, and everything due has been billed",))


def _why_down(status: Status) -> tuple[str, ...]:
    reasons = [f"billing is halted: {notice.message}" for notice in status.notices if notice.halts]
    if intruder := status.lock_held_without_term:
        reasons.append(f"no replica can lead: {intruder} holds the lock without a term; end that session")
    elif status.leader is None:
        reasons.append("no replica leads")
    elif (
        status.waiting_for == "nothing"
        and status.next_cycle_at is not None
        and (late := _seconds(status, status.next_cycle_at)) > OVERDUE_SECONDS
    ):
        reasons.append(f"the next cycle is {int(late // 60)} minutes overdue")
    run = status.last_run or {}
    if run.get("outcome") == "failed":
        cause = {"controller": "as a whole", "organizations": "for every instance that was due"}
        reasons.append(f"cycle {run['id']} failed {cause.get(run.get('cause') or '', '')}".rstrip())
    age = status.heartbeat_age_seconds
    if age is not None and age >= FALLBACK_SECONDS:
        reasons.append("the heartbeat is older than 90 minutes, so the application bills by its own rules")
    return tuple(reasons)


def _why_attention(status: Status) -> tuple[str, ...]:
    reasons = [notice.message for notice in status.notices if not notice.halts]
    if status.failures:
        reasons.append(f"{_count(status.failures, 'instance')} can't be charged")
    run = status.last_run or {}
    if missed := _missed(run):
        reasons.append(f"cycle {run['id']} missed {_count(missed, 'instance')}")
    if status.suspended:
        reasons.append(f"{_count(status.suspended, 'organization')} suspended")
    if status.backlogs:
        instances = _count(status.backlogs, "instance")
        reasons.append(f"{instances} in backlog, {status.backlog} not charged; use `accept-backlog` or `waive`")
    if status.differing_wallets:
        wallets = (
            f"{_count(status.differing_wallets, 'wallet')} {'differs' if status.differing_wallets == 1 else 'differ'}"
        )
        reasons.append(f"{wallets} from the transactions by {status.difference}; `audit` lists them")
    if run.get("outcome") in {"stopped", "abandoned"}:
        reasons.append(f"cycle {run['id']} was {run['outcome']}")
    age = status.heartbeat_age_seconds
    if age is not None and HEARTBEAT_LATE_SECONDS < age < FALLBACK_SECONDS:
        reasons.append(f"the heartbeat is {int(age // 60)} minutes old")
    if status.running_since and _seconds(status, status.running_since) > status.interval_minutes * 60:
        reasons.append("the cycle has been running for longer than the interval")
    completed = status.last_completed_at
    if completed and status.checked_until < completed and _seconds(status, completed) > UNGUARDED_SECONDS:
        reasons.append("the guard has not checked the charges of the last completed cycle")
    return tuple(reasons)


def _missed(run: dict[str, Any]) -> int:
    return int((run.get("failures_by_reason") or {}).get("missed", 0))


def _seconds(status: Status, since: Any) -> float:  # noqa: ANN401 - a datetime
    seconds: float = (status.database_time - since).total_seconds()
    return seconds


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
