"""Parses kubectl's JSON and a pod's log lines into values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ROLE: Final = "billing.containerstacks.io/role"
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"


@dataclass(frozen=True)
class PodView:
    """A pod.

    Attributes:
        role: value of the role label, or None.
        deletion_cost: value of the annotation, or None.
        restarts: restarts of all containers, including init containers.
        waiting: reasons why containers wait to start (`CrashLoopBackOff`, `PodInitializing`).
    """

    name: str
    uid: str
    ip: str
    role: str | None
    deletion_cost: int | None
    ready: bool
    terminating: bool
    restarts: int
    waiting: tuple[str, ...]


@dataclass(frozen=True)
class EventView:
    """An Event of events.k8s.io.

    Attributes:
        regarding: `kind/name`.
        pod: name of the related pod; empty if there is none.
        at: time in RFC 3339, which sorts as text.
    """

    reason: str
    regarding: str
    pod: str
    note: str
    at: str


def pod_views(listing: Mapping[str, Any]) -> list[PodView]:
    """Parses a list of pods, sorted by name."""
    return sorted((_pod(item) for item in listing["items"]), key=lambda pod: pod.name)


def _pod(item: Mapping[str, Any]) -> PodView:
    metadata, status = item["metadata"], item.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    containers = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    cost = metadata.get("annotations", {}).get(DELETION_COST)
    reasons = (c.get("state", {}).get("waiting", {}).get("reason") for c in containers)
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        ip=status.get("podIP", ""),
        role=metadata.get("labels", {}).get(ROLE),
        deletion_cost=None if cost is None else int(cost),
        ready=conditions.get("Ready") == "True",
        terminating="deletionTimestamp" in metadata,
        restarts=sum(int(c.get("restartCount", 0)) for c in containers),
        waiting=tuple(reason for reason in reasons if reason),
    )


def event_views(listing: Mapping[str, Any]) -> list[EventView]:
    """Parses a list of Events, oldest first."""
    return sorted((_event(item) for item in listing["items"]), key=lambda event: event.at)


def _event(item: Mapping[str, Any]) -> EventView:
    regarding, related = item.get("regarding", {}), item.get("related", {})
    return EventView(
        reason=item.get("reason", ""),
        regarding=f"{regarding.get('kind', '')}/{regarding.get('name', '')}",
        pod=related.get("name", "") if related.get("kind") == "Pod" else "",
        note=item.get("note", ""),
        at=item.get("eventTime") or item.get("deprecatedLastTimestamp") or "",
    )


def log_events(text: str) -> list[dict[str, Any]]:
    """Parses the JSON lines of a log that have an `event`. Skips all other lines."""
    found = []
    for line in text.splitlines():
        try:
            event = json.loads(line[line.find("{") :] if "{" in line else line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            found.append(event)
    return found


def pod_of(instance: str) -> str:
    """The name of the pod in an instance id, `pod:suffix`."""
    return instance.partition(":")[0]


def address_of(ip: str) -> str:
    """Formats an IP address for a URL."""
    return f"[{ip}]" if ":" in ip else ip
