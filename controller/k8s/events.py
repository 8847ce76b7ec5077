"""Events of `events.k8s.io/v1`: their reasons, notes and form."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from controller.billing.values import CycleResult, Outcome
from controller.k8s.pod import Pod

CONTROLLER: Final = "containerstacks-billing"
#: The API server's limit.
MAX_NOTE_BYTES: Final = 1024
_MAX_NAME: Final = 200


class Reason(StrEnum):
    """The reasons of Events. They are documented, so that people can filter by them."""

    LEADER_ELECTED = "LeaderElected"
    LEADERSHIP_LOST = "LeadershipLost"
    LEADERSHIP_RESIGNED = "LeadershipResigned"
    CYCLE_COMPLETED = "CycleCompleted"
    CYCLE_COMPLETED_WITH_FAILURES = "CycleCompletedWithFailures"
    CYCLE_FAILED = "CycleFailed"
    BILLING_HALTED = "BillingHalted"
    BILLING_CONTINUED = "BillingContinued"
    DRAIN_STARTED = "DrainStarted"
    DRAIN_COMPLETED = "DrainCompleted"
    DRAIN_TIMED_OUT = "DrainTimedOut"


_ACTIONS: Final = {
    Reason.LEADER_ELECTED: "Elect",
    Reason.LEADERSHIP_LOST: "Elect",
    Reason.LEADERSHIP_RESIGNED: "Elect",
    Reason.CYCLE_COMPLETED: "Bill",
    Reason.CYCLE_COMPLETED_WITH_FAILURES: "Bill",
    Reason.CYCLE_FAILED: "Bill",
    Reason.BILLING_HALTED: "Bill",
    Reason.BILLING_CONTINUED: "Bill",
    Reason.DRAIN_STARTED: "Drain",
    Reason.DRAIN_COMPLETED: "Drain",
    Reason.DRAIN_TIMED_OUT: "Drain",
}


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        name: the object's name. It is chosen once, so that a second attempt can't create a second Event.
        reason: what happened.
        note: a sentence for people.
        at: when it happened, in UTC.
        warning: True if it needs attention.
    """

    name: str
    reason: Reason
    note: str
    at: datetime
    warning: bool = False


def event_name(pod: str, unique: str) -> str:
    """Returns a name for an Event; `unique` makes it differ from every other."""
    return f"{pod[:_MAX_NAME].rstrip('.-')}.{unique}"


def cycle_reason(result: CycleResult) -> Reason | None:
    """Returns a cycle's reason. None for a stopped or deposed one: the drain or the election announces it."""
    match result.outcome:
        case Outcome.COMPLETED | Outcome.COMPLETED_WITH_FAILURES:
            return Reason.CYCLE_COMPLETED_WITH_FAILURES if result.totals.failures else Reason.CYCLE_COMPLETED
        case Outcome.FAILED:
            return Reason.CYCLE_FAILED
        case _:
            return None


def cycle_note(result: CycleResult) -> str:
    """Describes a cycle: what it charged, what it could not charge, and why. An error's text may name a customer."""
    totals = result.totals
    charged = (
        f"charged {totals.amount:.2f} for {totals.hours} hours of {totals.instances} instances"
        f" in {result.seconds:.1f} s"
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted((result.failures_by_reason or {}).items()))
    left = f"; {totals.debts} in debt, {totals.failures} not charged" if totals.debts or totals.failures else ""
    left += f" ({reasons})" if reasons else ""
    if result.outcome is Outcome.FAILED:
        why = "the log and `containerstacks-billing history` give the error"
        return f"{why}; {charged}{left}"
    return charged[0].upper() + charged[1:] + left


def micro_time(moment: datetime) -> str:
    """Returns a time in RFC 3339 with exactly six fraction digits. The API server rejects any other number."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def event_body(event: Event, pod: Pod, deployment_uid: str | None) -> dict[str, Any]:
    """Returns an Event as the object that the API server expects.

    Args:
        event: what happened.
        pod: the pod where it happened.
        deployment_uid: uid of the Deployment that the Event is about. If None, the Event is about the pod.
    """
    reference = {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name}
    if pod.uid:
        reference["uid"] = pod.uid
    regarding = reference
    if pod.deployment and deployment_uid:
        regarding = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "namespace": pod.namespace,
            "name": pod.deployment,
            "uid": deployment_uid,
        }
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": event.name, "namespace": pod.namespace},
        "eventTime": micro_time(event.at),
        "reportingController": CONTROLLER,
        "reportingInstance": pod.name[:128],
        "action": _ACTIONS[event.reason],
        "reason": str(event.reason),
        "regarding": regarding,
        **({"related": reference} if regarding is not reference else {}),
        "note": _shortened(event.note),
        "type": "Warning" if event.warning else "Normal",
    }


def _shortened(note: str) -> str:
    line = " ".join(note.split())
    if len(line.encode()) <= MAX_NOTE_BYTES:
        return line
    return line.encode()[: MAX_NOTE_BYTES - 3].decode(errors="ignore") + "…"
