"""Events of `events.k8s.io/v1`: their reasons, their words, their form. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from controller.billing.values import CycleResult, Outcome
from controller.k8s.pod import Pod

CONTROLLER: Final = "containerstacks-billing"
#: What the API server accepts.
MAX_NOTE_BYTES: Final = 1024
_MAX_NAME: Final = 200


class Reason(StrEnum):
    """Why there is an Event; documented, so that people can filter by it."""

    LEADER_ELECTED = "LeaderElected"
    LEADERSHIP_LOST = "LeadershipLost"
    LEADERSHIP_RESIGNED = "LeadershipResigned"
    CYCLE_COMPLETED = "CycleCompleted"
    CYCLE_FAILED = "CycleFailed"
    DRAIN_STARTED = "DrainStarted"
    DRAIN_COMPLETED = "DrainCompleted"
    DRAIN_TIMED_OUT = "DrainTimedOut"


_ACTIONS: Final = {
    Reason.LEADER_ELECTED: "Elect",
    Reason.LEADERSHIP_LOST: "Elect",
    Reason.LEADERSHIP_RESIGNED: "Elect",
    Reason.CYCLE_COMPLETED: "Bill",
    Reason.CYCLE_FAILED: "Bill",
    Reason.DRAIN_STARTED: "Drain",
    Reason.DRAIN_COMPLETED: "Drain",
    Reason.DRAIN_TIMED_OUT: "Drain",
}


@dataclass(frozen=True)
class Event:
    """Something that happened, for people.

    Attributes:
        name: of the object, made once, so that a second try can't make a second Event.
        at: when it happened, in UTC.
        note: a sentence.
        warning: whether it should worry anyone.
    """

    name: str
    reason: Reason
    note: str
    at: datetime
    warning: bool = False


def event_name(pod: str, unique: str) -> str:
    """A name that no other Event has."""
    return f"{pod[:_MAX_NAME].rstrip('.-')}.{unique}"


def cycle_note(result: CycleResult) -> str | None:
    """What is to be said of a cycle; None for one that a drain stopped, which tells of itself, or a lost leadership."""
    totals = result.totals
    charged = (
        f"charged {totals.amount:.2f} for {totals.hours} hours of {totals.instances} instances"
        f" in {result.seconds:.1f} s"
    )
    left = f"; {totals.debts} in debt, {totals.failures} not charged" if totals.debts or totals.failures else ""
    match result.outcome:
        case Outcome.COMPLETED:
            return charged[0].upper() + charged[1:] + left
        case Outcome.FAILED:
            return f"{result.error or 'for an unknown reason'}; {charged}{left}"
        case _:
            return None


def micro_time(moment: datetime) -> str:
    """RFC 3339 with exactly six fraction digits: the API server refuses any other number of them."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def event_body(event: Event, place: Pod, deployment_uid: str | None) -> dict[str, Any]:
    """The object to create.

    Args:
        event: what happened.
        place: where.
        deployment_uid: None: the Event regards the pod.
    """
    pod = {"apiVersion": "v1", "kind": "Pod", "namespace": place.namespace, "name": place.pod}
    if place.pod_uid:
        pod["uid"] = place.pod_uid
    regarding = pod
    if place.deployment and deployment_uid:
        regarding = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "namespace": place.namespace,
            "name": place.deployment,
            "uid": deployment_uid,
        }
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": event.name, "namespace": place.namespace},
        "eventTime": micro_time(event.at),
        "reportingController": CONTROLLER,
        "reportingInstance": place.pod[:128],
        "action": _ACTIONS[event.reason],
        "reason": str(event.reason),
        "regarding": regarding,
        **({"related": pod} if regarding is not pod else {}),
        "note": _shortened(event.note),
        "type": "Warning" if event.warning else "Normal",
    }


def _shortened(note: str) -> str:
    line = " ".join(note.split())
    if len(line.encode()) <= MAX_NOTE_BYTES:
        return line
    return line.encode()[: MAX_NOTE_BYTES - 3].decode(errors="ignore") + "…"
