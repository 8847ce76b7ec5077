"""Tells Kubernetes, on its own thread, what the others report; they never wait for it."""

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

from controller.billing.values import CycleResult, Outcome
from controller.k8s.api import REQUEST_SECONDS, Api, ApiError, in_cluster_configuration
from controller.k8s.events import Event, Reason, cycle_note, event_body, event_name
from controller.k8s.pod import Pod
from controller.lifecycle.drain import DrainOutcome
from controller.log import WarnOnce

#: At the end, for what is still to be told.
FLUSH_SECONDS: Final = 3.0
MAX_EVENTS: Final = 32
#: A completed cycle is news so often, and always when some instance could not be charged.
CYCLE_NEWS_SECONDS: Final = 600.0
#: Between tries: doubled from the first to the longest, with jitter.
FIRST_BACK_OFF_SECONDS: Final = 1.0
LONGEST_BACK_OFF_SECONDS: Final = 60.0
#: After a refusal that only a person can end, by granting a permission.
REFUSED_BACK_OFF_SECONDS: Final = 300.0

#: Failures of this kind concern the API server itself, whatever was requested.
ANY_RESOURCE: Final = "*"

DELETION_COSTS: Final = {"leader": 100, "standby": 0}

log = structlog.get_logger(part="cluster")


@dataclass
class _BackOff:
    """When one kind of request may be tried again."""

    failures: int = 0
    not_before: float = 0.0

    def failed(self, now: float, *, may_pass: bool) -> None:
        self.failures += 1
        delay = min(FIRST_BACK_OFF_SECONDS * 2 ** (min(self.failures, 10) - 1), LONGEST_BACK_OFF_SECONDS)
        self.not_before = now + (delay * uniform(0.8, 1.2) if may_pass else REFUSED_BACK_OFF_SECONDS)  # noqa: S311

    def worked(self) -> None:
        self.failures, self.not_before = 0, 0.0


class Announcer:
    """Whose methods are called as things happen, from any thread, and return at once.

    Args:
        place: where this replica runs; a text says why there is nobody to tell.
        configure: gives the official client's configuration; called on this thread.
        clock: monotonic seconds.
        redact: removes secrets from a text that comes from elsewhere.
    """

    def __init__(
        self,
        place: Pod | str,
        configure: Callable[[], Any] = in_cluster_configuration,
        clock: Callable[[], float] = time.monotonic,
        redact: Callable[[str], str] = str,
    ) -> None:
        self._place = place
        self._configure = configure
        self._clock = clock
        self._redact = redact
        self._changed = threading.Condition()
        self._wanted = "standby"
        self._shown: str | None = None
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._stop_by: float | None = None
        self._news_at = -CYCLE_NEWS_SECONDS
        self._label_back_off = _BackOff()
        self._event_back_off = _BackOff()
        self._deployment_uid: str | None = None
        self._deployment_asked = False
        self._drain_announced = False
        self._failures = WarnOnce(log, "cluster.failed")

    def elected(self, term: int) -> None:
        """This replica leads."""
        self._tell(Reason.LEADER_ELECTED, f"leads in term {term}", role="leader")

    def deposed(self, term: int, reason: str) -> None:
        """This replica lost the leadership involuntarily."""
        self._tell(Reason.LEADERSHIP_LOST, f"was deposed in term {term}: {reason}", role="standby", warning=True)

    def resigned(self, term: int) -> None:
        """This replica has given up the leadership on purpose."""
        self._tell(Reason.LEADERSHIP_RESIGNED, f"resigned from term {term}", role="standby")

    def cycle_ended(self, result: CycleResult) -> None:
        """A cycle has ended, one way or another."""
        note = cycle_note(result)
        if note is None:
            return
        if result.outcome is Outcome.FAILED:
            self._tell(Reason.CYCLE_FAILED, f"failed a cycle: {note}", warning=True)
            return
        with self._changed:
            if not result.totals.failures and self._clock() - self._news_at < CYCLE_NEWS_SECONDS:
                return
            self._news_at = self._clock()
        self._tell(Reason.CYCLE_COMPLETED, note, warning=result.totals.failures > 0)

    def drain_started(self, reason: str) -> None:
        """This replica is about to stop. Announced only for a leader, since a standby's end changes nothing."""
        with self._changed:
            self._drain_announced = self._wanted == "leader"
        if self._drain_announced:
            self._tell(Reason.DRAIN_STARTED, f"drains: {reason}")

    def drain_ended(self, outcome: DrainOutcome) -> None:
        """The drain is over: the work has stopped, and this replica no longer leads."""
        if not self._drain_announced:
            return
        if outcome is DrainOutcome.COMPLETED:
            self._tell(Reason.DRAIN_COMPLETED, "has drained")
        else:
            note = "stopped before its work was done; the successor goes on from there"
            self._tell(Reason.DRAIN_TIMED_OUT, note, warning=True)

    def run(self) -> None:
        """The loop, until `stop`. Never raises: nothing depends on it."""
        if isinstance(self._place, str):
            log.debug("cluster.skipped", reason=self._place)
            return
        try:
            api = Api(self._configure(), self._place)
        except Exception as error:  # noqa: BLE001 - a client of another version, an unreadable certificate, ...
            log.warning("cluster.unavailable", error=f"{type(error).__name__}: {error}")
            return
        while self._wait():
            self._work(api, self._place)
        self._work(api, self._place)
        api.close()

    def stop(self) -> None:
        """Tries once more what is left, within FLUSH_SECONDS, and ends the loop. Any thread, any number of times."""
        with self._changed:
            if self._stop_by is None:
                self._stop_by = self._clock() + FLUSH_SECONDS
                self._changed.notify_all()

    def _tell(self, reason: Reason, note: str, *, role: str | None = None, warning: bool = False) -> None:
        if isinstance(self._place, str):
            return
        name = event_name(self._place.pod, uuid.uuid4().hex[:16])
        said = self._redact(note if reason is Reason.CYCLE_COMPLETED else f"{self._place.pod} {note}")
        with self._changed:
            self._wanted = role or self._wanted
            self._events.append(Event(name, reason, said, datetime.now(UTC), warning))
            self._changed.notify_all()

    def _wait(self) -> bool:
        """Until there is something to do now; False when it is time to stop."""
        with self._changed:
            while self._stop_by is None:
                due = [self._label_back_off.not_before] if self._wanted != self._shown else []
                due += [self._event_back_off.not_before] if self._events else []
                remaining = min(due) - self._clock() if due else None
                if remaining is not None and remaining <= 0:
                    return True
                self._changed.wait(remaining)
            return False

    def _work(self, api: Api, place: Pod) -> None:
        """One try at the label, and at each Event until one fails."""
        if self._wanted != self._shown:
            self._try("pods", self._label_back_off, lambda: self._show_role(api))
        while self._events and self._try("events", self._event_back_off, lambda: self._send_event(api, place)):
            pass

    def _show_role(self, api: Api) -> None:
        role = self._wanted
        api.show_role(role, DELETION_COSTS[role], self._seconds_left())
        self._shown = role

    def _send_event(self, api: Api, place: Pod) -> None:
        with self._changed:
            event = self._events[0]
        try:
            self._ask_for_deployment(api, place)
            api.create_event(event_body(event, place, self._deployment_uid), self._seconds_left())
        except ApiError as error:
            if error.may_pass:
                raise
            self._drop(event)
            raise
        self._drop(event)

    def _drop(self, event: Event) -> None:
        with self._changed:
            if self._events and self._events[0] is event:  # a full queue may have dropped it meanwhile
                self._events.popleft()

    def _ask_for_deployment(self, api: Api, place: Pod) -> None:
        """Once; without an answer that helps, Events regard the pod."""
        if self._deployment_asked or place.deployment is None:
            return
        try:
            self._deployment_uid = api.deployment_uid(place.deployment, self._seconds_left())
        except ApiError as error:
            if error.may_pass:
                raise
            self._warn("deployments", error)
        self._deployment_asked = True

    def _try(self, what: str, back_off: _BackOff, request: Callable[[], None]) -> bool:
        """Whether it worked. While stopping, back-off is over, and so is patience."""
        stopping = self._stop_by is not None
        if (not stopping and self._clock() < back_off.not_before) or self._seconds_left() <= 0:
            return False
        try:
            request()
        except ApiError as error:
            back_off.failed(self._clock(), may_pass=error.may_pass)
            self._warn(what, error)
            return False
        except Exception as error:  # noqa: BLE001 - a mistake here must not reach billing either
            back_off.failed(self._clock(), may_pass=False)
            self._warn_once((what, type(error).__name__), f"{type(error).__name__}: {error}", what)
            return False
        back_off.worked()
        self._failures.worked(what)
        self._failures.worked(ANY_RESOURCE)
        return True

    def _seconds_left(self) -> float:
        return REQUEST_SECONDS if self._stop_by is None else self._stop_by - self._clock()

    def _warn(self, what: str, error: ApiError) -> None:
        """Once a kind, until it works again; an API server that is away is one kind, whatever was asked of it."""
        kind = (ANY_RESOURCE if error.may_pass else what, error.trouble.name)
        self._warn_once(kind, f"{error.trouble}: {error}", what)

    def _warn_once(self, kind: tuple[str, str], error: str, what: str) -> None:
        self._failures.failed(*kind, resource=what, error=self._redact(error))
