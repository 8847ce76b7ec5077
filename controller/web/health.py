"""Alive, ready, or why not. Pure; the rules are in the package's docstring."""

from dataclasses import dataclass
from typing import Final

from controller.election import Role
from controller.errors import one_line

#: While it connects, the elector's loop comes round at least this often: name servers that are away take their time.
CONNECTING_LIVENESS_SECONDS: Final = 300.0
#: Once it has joined, at least this often, or within LIVE_TIMEOUTS of the lock session's timeouts.
JOINED_SECONDS: Final = 60.0
LIVE_TIMEOUTS: Final = 3

_JOINED: Final = {Role.STANDBY, Role.LEADER}


@dataclass(frozen=True)
class Vitals:
    """What a replica knows of itself at a moment, without asking anyone.

    Attributes:
        role: the elector's.
        term: of the leadership that it may believe in; None when it does not lead.
        silent_seconds: since the elector's loop last came round.
        draining: whether it has been asked to stop.
        ended: names of the threads that must run and don't; while it drains they may end.
        trouble: why it has not joined the election; one line.
    """

    role: Role
    term: int | None
    silent_seconds: float
    draining: bool = False
    ended: tuple[str, ...] = ()
    trouble: str | None = None


def why_not_live(vitals: Vitals, session_timeout_seconds: float) -> list[str]:
    """One line for each failing check; none when it is alive.

    Args:
        vitals: of this replica.
        session_timeout_seconds: after which silence the server ends a lock session.
    """
    reasons = []
    joined = max(JOINED_SECONDS, LIVE_TIMEOUTS * session_timeout_seconds)
    bound = joined if vitals.role in _JOINED else max(joined, CONNECTING_LIVENESS_SECONDS)
    if vitals.role is not Role.STOPPED and vitals.silent_seconds > bound:
        reasons.append(f"elector: its loop has not come round for {vitals.silent_seconds:.0f} s")
    if not vitals.draining:
        reasons += [f"{name}: its thread has ended" for name in vitals.ended]
    return reasons


def why_not_ready(vitals: Vitals, session_timeout_seconds: float, unproven: str | None = None) -> list[str]:
    """One line for each failing check; none when it is ready.

    Args:
        vitals: of this replica.
        session_timeout_seconds: after which silence the server ends a lock session.
        unproven: why it is not known that the workers' sessions reach the database; None where it is.
    """
    reasons = []
    if vitals.draining:
        reasons.append("draining: this replica is about to stop")
    if vitals.role not in _JOINED:
        reasons.append(_why_not_joined(vitals))
    elif vitals.silent_seconds > session_timeout_seconds:
        reasons.append(f"database: the lock session has been silent for {vitals.silent_seconds:.0f} s")
    if unproven is not None:
        reasons.append(f"database: not reached yet by the workers' address: {one_line(unproven)}")
    return reasons + [f"{name}: its thread has ended" for name in vitals.ended if not vitals.draining]


def _why_not_joined(vitals: Vitals) -> str:
    if vitals.role is Role.STOPPED:
        return "elector: stopped"
    return f"database: {one_line(vitals.trouble)}" if vitals.trouble else "elector: connecting to the database"
