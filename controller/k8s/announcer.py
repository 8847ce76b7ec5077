"""Announces to Kubernetes, on a thread, what other threads report. They never wait for it."""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import uniform
from typing import Any, Final

import structlog

from controller.billing.values import CycleResult
from controller.errors import BillingError
from controller.k8s.api import REQUEST_SECONDS, Api, ApiError, FailureKind, in_cluster_configuration
from controller.k8s.events import Event, Reason, cycle_note, cycle_reason, event_body, event_name
from controller.k8s.pod import Pod
from controller.k8s.role_label import RoleLabels
from controller.lifecycle.drain import DrainOutcome
from controller.log import WarnOnce

#: How long the last attempt may take at the end.
FLUSH_SECONDS: Final = 3.0
#: Events that wait to be sent; the oldest is dropped.
MAX_EVENTS: Final = 32
#: The shortest time between two Events about cycles with the same outcome.
CYCLE_EVENT_SECONDS: Final = 600.0
#: The time between attempts doubles from the first to the longest, with jitter.
FIRST_BACK_OFF_SECONDS: Final = 1.0
LONGEST_BACK_OFF_SECONDS: Final = 60.0
#: The time between attempts after a failure that only a person can fix, such as a missing permission.
PERMANENT_BACK_OFF_SECONDS: Final = 300.0

#: Stands for the resource if the API server itself is the problem.
ANY_RESOURCE: Final = "*"

#: Failures that uninstalling causes, because it deletes the Role and the Deployment before the pods have ended.
_GONE_AT_THE_END: Final = {FailureKind.FORBIDDEN.name, FailureKind.NOT_FOUND.name}

log = structlog.get_logger(part="k8s")


@dataclass
class _BackOff:
    """When the next attempt at one kind of request is due."""

    failures: int = 0
    not_before: float = 0.0

    def failed(self, now: float, *, transient: bool) -> None:
        self.failures += 1
        delay = min(FIRST_BACK_OFF_SECONDS * 2 ** (min(self.failures, 10) - 1), LONGEST_BACK_OFF_SECONDS)
        self.not_before = now + (delay * uniform(0.8, 1.2) if transient else PERMANENT_BACK_OFF_SECONDS)  # noqa: S311

    def worked(self) -> None:
        self.failures, self.not_before = 0, 0.0


class Announcer:
    """Keeps the pod's label current and sends Events. The reporting methods return at once; any thread may call them.

    Args:
        pod: this replica's pod; a string gives the reason why there is no access to Kubernetes.
        configure: returns the official client's configuration; called on the announcer's thread.
        clock: monotonic seconds.
        redact: removes secrets from a text.
        leads: returns True while this replica may believe that it leads.
        former_leaders: returns the pods that led before a term; called on the announcer's thread, and may fail.
    """

    def __init__(
        self,
        pod: Pod | str,
        configure: Callable[[], Any] = in_cluster_configuration,
        clock: Callable[[], float] = time.monotonic,
        *,
        redact: Callable[[str], str] = str,
        leads: Callable[[], bool] = lambda: True,
        former_leaders: Callable[[int], list[Pod]] = lambda _term: [],
    ) -> None:
        self._pod = pod
        self._name = pod if isinstance(pod, str) else pod.name
        self._configure = configure
        self._clock = clock
        self._redact = redact
        self._changed = threading.Condition()
        self._labels = None if isinstance(pod, str) else RoleLabels(pod, leads, former_leaders, clock)
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._stop_by: float | None = None
        self._cycle_announced: tuple[Reason, tuple[str, ...]] = (Reason.CYCLE_COMPLETED, ())
        self._cycle_announced_at = -CYCLE_EVENT_SECONDS
        self._label_back_off = _BackOff()
        self._event_back_off = _BackOff()
        self._deployment_uid: str | None = None
        self._deployment_looked_up = False
        self._drain_announced = False
        self._draining = False
        self._failures = WarnOnce(log, "k8s.request_failed")

    def elected(self, term: int) -> None:
        """Reports that this replica leads."""
        self._announce(Reason.LEADER_ELECTED, f"{self._name} leads in term {term}", role="leader", term=term)

    def deposed(self, term: int, reason: str) -> None:
        """Reports that this replica lost the leadership involuntarily."""
        self._announce(
            Reason.LEADERSHIP_LOST, f"{self._name} was deposed in term {term}: {reason}", role="standby", warning=True
        )

    def resigned(self, term: int) -> None:
        """Reports that this replica gave up the leadership on purpose: to stop, or to let another replica try."""
        why = "to stop" if self._draining else "to let another replica try"
        self._announce(Reason.LEADERSHIP_RESIGNED, f"{self._name} resigned from term {term} {why}", role="standby")

    def cycle_ended(self, result: CycleResult) -> None:
        """Reports a cycle's result. Failures and a failed cycle are warnings; debts don't need an operator."""
        reason = cycle_reason(result)
        if reason is None or not self._is_news(reason, result):
            return
        note = cycle_note(result)
        if reason is Reason.CYCLE_FAILED:
            note = f"{self._name} failed a cycle: {note}"
        self._announce(reason, note, warning=reason is not Reason.CYCLE_COMPLETED)

    def _is_news(self, reason: Reason, result: CycleResult) -> bool:
        """Returns True if a cycle ended differently from the last announced one, or if that was a while ago.

        A cycle that found nothing to charge is never news.
        """
        ended = reason, tuple(sorted(result.failures_by_reason or {}))
        with self._changed:
            if ended == self._cycle_announced:
                idle = reason is Reason.CYCLE_COMPLETED and not result.totals.instances
                if idle or self._clock() - self._cycle_announced_at < CYCLE_EVENT_SECONDS:
                    return False
            self._cycle_announced, self._cycle_announced_at = ended, self._clock()
            return True

    def billing_halted(self, message: str | None) -> None:
        """Reports that this leader bills nothing, and why. None means that it bills again."""
        if message is None:
            self._announce(Reason.BILLING_CONTINUED, f"{self._name} bills again")
        else:
            self._announce(Reason.BILLING_HALTED, f"{self._name} bills nothing: {message}", warning=True)

    def drain_started(self, reason: str) -> None:
        """Reports that a drain starts. Only a leader's drain is announced, because a standby's changes nothing."""
        with self._changed:
            self._draining = True
            self._drain_announced = self._labels is not None and self._labels.wanted_role == "leader"
        if self._drain_announced:
            self._announce(Reason.DRAIN_STARTED, f"{self._name} drains: {reason}")

    def drain_ended(self, outcome: DrainOutcome) -> None:
        """Reports that the work has stopped and that this replica no longer leads."""
        if not self._drain_announced:
            return
        if outcome is DrainOutcome.COMPLETED:
            self._announce(Reason.DRAIN_COMPLETED, f"{self._name} has drained")
        else:
            note = f"{self._name} stopped before its work was done; its successor continues"
            self._announce(Reason.DRAIN_TIMED_OUT, note, warning=True)

    def run(self) -> None:
        """Runs the loop until `stop`. Never raises, because billing must not depend on it."""
        if isinstance(self._pod, str) or self._labels is None:
            log.debug("k8s.skipped", reason=self._pod)
            return
        try:
            api = Api(self._configure(), self._pod)
        except Exception as error:  # noqa: BLE001 - another version of the client, an unreadable certificate, and so on
            log.warning("k8s.client_failed", error=f"{type(error).__name__}: {error}")
            return
        while self._wait(self._labels):
            self._send_pending(api, self._pod, self._labels)
        self._send_pending(api, self._pod, self._labels)
        api.close()

    def stop(self) -> None:
        """Ends the loop after one more attempt at everything pending. Any thread may call it, and repeatedly."""
        with self._changed:
            if self._stop_by is None:
                self._stop_by = self._clock() + FLUSH_SECONDS
                self._changed.notify_all()

    def _announce(
        self, reason: Reason, note: str, *, role: str | None = None, term: int | None = None, warning: bool = False
    ) -> None:
        if isinstance(self._pod, str) or self._labels is None:
            return
        name = event_name(self._pod.name, uuid.uuid4().hex[:16])
        with self._changed:
            if role is not None:
                self._labels.want(role, term)
                self._label_back_off.not_before = 0.0  # a new role deserves an attempt at once
            self._events.append(Event(name, reason, self._redact(note), datetime.now(UTC), warning))
            self._changed.notify_all()

    def _wait(self, labels: RoleLabels) -> bool:
        """Waits until a request is due. Returns False once the loop has to end."""
        with self._changed:
            while self._stop_by is None:
                label_at = labels.due_at()
                due = [] if label_at is None else [max(label_at, self._label_back_off.not_before)]
                due += [self._event_back_off.not_before] if self._events else []
                remaining = min(due) - self._clock() if due else None
                if remaining is not None and remaining <= 0:
                    return True
                self._changed.wait(remaining)
            return False

    def _send_pending(self, api: Api, pod: Pod, labels: RoleLabels) -> None:
        """Tries to set the label, and to send each Event until one fails."""
        label_at = labels.due_at()
        if labels.own_is_due or (self._stop_by is None and label_at is not None and label_at <= self._clock()):
            self._attempt("pods", self._label_back_off, lambda: labels.send(api, self._seconds_left()))
        while self._events and self._attempt("events", self._event_back_off, lambda: self._send_event(api, pod)):
            pass

    def _send_event(self, api: Api, pod: Pod) -> None:
        with self._changed:
            event = self._events[0]
        try:
            self._find_deployment(api, pod)
            api.create_event(event_body(event, pod, self._deployment_uid), self._seconds_left())
        except ApiError as error:
            if error.transient:
                raise
            self._drop(event)
            raise
        self._drop(event)

    def _drop(self, event: Event) -> None:
        with self._changed:
            if self._events and self._events[0] is event:  # the full queue may have dropped it
                self._events.popleft()

    def _find_deployment(self, api: Api, pod: Pod) -> None:
        """Looks the Deployment up once. If it can't be read, Events are about the pod."""
        if self._deployment_looked_up or pod.deployment is None:
            return
        try:
            self._deployment_uid = api.deployment_uid(pod.deployment, self._seconds_left())
        except ApiError as error:
            if error.transient:
                raise
            self._warn("deployments", error)
        self._deployment_looked_up = True

    def _attempt(self, resource: str, back_off: _BackOff, request: Callable[[], None]) -> bool:
        """Sends a request and returns True if it worked. Back-off applies unless the loop is ending."""
        stopping = self._stop_by is not None
        if (not stopping and self._clock() < back_off.not_before) or self._seconds_left() <= 0:
            return False
        try:
            request()
        except ApiError as error:
            back_off.failed(self._clock(), transient=error.transient)
            self._warn(resource, error)
            return False
        except BillingError as error:  # the database can't be read; other components log that
            back_off.failed(self._clock(), transient=True)
            log.debug("k8s.former_leaders_unlisted", error=self._redact(str(error)))
            return False
        except Exception as error:  # noqa: BLE001 - a defect here must not stop billing
            back_off.failed(self._clock(), transient=False)
            self._warn_once((resource, type(error).__name__), f"{type(error).__name__}: {error}", resource)
            return False
        back_off.worked()
        self._failures.worked(resource)
        self._failures.worked(ANY_RESOURCE)
        return True

    def _seconds_left(self) -> float:
        return REQUEST_SECONDS if self._stop_by is None else self._stop_by - self._clock()

    def _warn(self, resource: str, error: ApiError) -> None:
        """Logs one warning for each kind of failure. An unavailable API server is one kind for all resources."""
        kind = (ANY_RESOURCE if error.transient else resource, error.kind.name)
        self._warn_once(kind, f"{error.kind}: {error}", resource)

    def _warn_once(self, kind: tuple[str, str], error: str, resource: str) -> None:
        if self._draining and kind[1] in _GONE_AT_THE_END:
            log.debug("k8s.request_failed", resource=resource, error=self._redact(error))
            return
        self._failures.failed(*kind, resource=resource, error=self._redact(error))
