"""The loop that contends, leads and resigns; one thread."""

import math
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

import structlog

from controller.election.bounds import Bounds, Clock, Deadline
from controller.election.session import LockSession, LockSessionError
from controller.election.silence import Silence

#: Between two sessions, when the first has failed.
RETRY_SECONDS = 1.0
#: After an eviction the lock is tried so much later, then after twice as long, up to the usual poll. Never sooner.
EVICTION_RETRY_SECONDS = 0.05


class Role(StrEnum):
    """A replica's state, as people see it."""

    CONNECTING = "connecting"
    STANDBY = "standby"
    LEADER = "leader"
    STOPPED = "stopped"


class Leadership:
    """A term in office. Whoever works under it asks `still_leads()` before each step."""

    def __init__(self, term: int, deadline: Deadline) -> None:
        self.term = term
        self._deadline = deadline
        self._over = False
        self._judging = threading.Lock()

    def still_leads(self) -> bool:
        """False from the moment at which the deadline passes, whatever blocks the elector's thread, and for ever."""
        with self._judging:
            self._over = self._over or self._deadline.passed
            return not self._over

    def end(self) -> None:
        """There is no way back."""
        with self._judging:
            self._over = True

    def extend(self, sent_at: float) -> bool:
        """A ping that was sent at `sent_at` came back good; whether in time. A late one revives nothing."""
        with self._judging:
            self._over = self._over or self._deadline.passed
            if not self._over:
                self._deadline.extend(sent_at)
            return not self._over

    @property
    def remaining_seconds(self) -> float:
        """How long it may still be believed in without another ping."""
        return self._deadline.remaining_seconds()


class Elector:
    """Contends for the lock until it is stopped. See the package's docstring for the states.

    Args:
        connect: opens a lock session; raises LockSessionError when it can't.
        bounds: the three bounds.
        clock: monotonic seconds.
        on_elected: called with each new leadership, on the elector's thread; must return at once.
        on_deposed: called after each leadership that ended without a resignation; must return at once.
        evicts: whether, standing by, it ends the session of a holder that has stopped leading and said nothing.
        on_evicted: called after each eviction; must return at once.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], LockSession],
        bounds: Bounds,
        clock: Clock,
        on_elected: Callable[[Leadership], None],
        on_deposed: Callable[[Leadership], None],
        evicts: bool = False,
        on_evicted: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._connect = connect
        self._bounds = bounds
        self._clock = clock
        self._on_elected = on_elected
        self._on_deposed = on_deposed
        self._evicts = evicts
        self._on_evicted = on_evicted
        self._jitter = jitter
        self._log = structlog.get_logger(part="election")
        self._session: LockSession | None = None
        self._stopping = threading.Event()
        self._stepping_down = threading.Event()
        self._not_before = clock()
        self._told: set[str] = set()
        self._told_hidden = False
        self.role = Role.CONNECTING
        #: Why it has not joined the election, or is no longer in it; one line.
        self.trouble: str | None = None
        self.alive_at = clock()

    def stop(self) -> None:
        """Resigns if it leads (the work must have stopped), and contends no more. Any thread, any number of times."""
        self._stopping.set()
        self._wake()

    def step_down(self, back_off_seconds: float) -> None:
        """Resigns (the work must have stopped) and lets others try for `back_off_seconds`."""
        self._not_before = self._clock() + back_off_seconds
        self._stepping_down.set()
        self._wake()

    def run(self) -> None:
        """The loop; returns when stopped and nothing is held."""
        while not self._stopping.is_set():
            self.alive_at = self._clock()
            self.role = Role.CONNECTING
            try:
                self._session = self._connect()
                try:
                    self._stand_by(self._session)
                finally:
                    self._session.close()
                    self._session = None
            except LockSessionError as error:
                self.role = Role.CONNECTING
                self._tell_failed(error)
                self._stopping.wait(RETRY_SECONDS * (0.5 + self._jitter()))
        self.role = Role.STOPPED

    def _stand_by(self, session: LockSession) -> None:
        joined = False
        silence, hurry_seconds = Silence(self._clock), math.inf
        while not self._stopping.is_set():
            self.alive_at = self._clock()
            if self.alive_at < self._not_before:
                session.ping()  # a session that says nothing is ended by the server
                silence.observe(None)
            elif (attempt := session.try_lock()).taken:
                self._lead(session, self.alive_at)
                return
            elif self._evicts:
                silence.observe(attempt.holder)
                self._tell_hidden(hidden=attempt.other_role)
            if not joined:
                self._log.info("election.joined")
                joined = True
                self._told.clear()
                self.role, self.trouble = Role.STANDBY, None
            hurry_seconds = EVICTION_RETRY_SECONDS if self._evict(session, silence) else hurry_seconds * 2
            poll_seconds = self._bounds.poll_interval_seconds * (0.8 + 0.4 * self._jitter())
            session.wait(max(min(poll_seconds, hurry_seconds, silence.remaining_seconds), EVICTION_RETRY_SECONDS))

    def _evict(self, session: LockSession, silence: Silence) -> bool:
        """Ends the session of a holder that has outlasted its own deadline; whether it did."""
        holder, seconds = silence.outlasted, silence.seconds
        if holder is None:
            return False
        silence.observe(None)
        evicted = session.evict(holder)
        if evicted:
            self._log.warning("leader.evicted", holder=holder.instance, silent_seconds=round(seconds, 1))
            self._on_evicted()
        return evicted

    def _lead(self, session: LockSession, sent_at: float) -> None:
        """From the lock to the end of the term. `sent_at`: when the statement that took the lock was sent."""
        term = session.mint()
        leadership = Leadership(term, Deadline(self._clock, self._bounds.leader_deadline_seconds, sent_at))
        if not leadership.still_leads():
            raise LockSessionError("minting the term took longer than a leader may believe without a ping")
        self._stepping_down.clear()
        self._told.clear()
        self.role, self.trouble = Role.LEADER, None
        self._log.info("leader.elected", term=term)
        self._on_elected(leadership)
        try:
            reason = self._keep(session, leadership)
        finally:
            leadership.end()
            self.role = Role.STANDBY
        if reason is None:
            with suppress(LockSessionError):
                session.resign()
            self._log.info("leader.resigned", term=term)
        else:
            self._log.warning("leader.deposed", term=term, reason=reason)
            self._on_deposed(leadership)

    def _keep(self, session: LockSession, leadership: Leadership) -> str | None:
        """Pings until it resigns (None) or is deposed (why)."""
        while not (self._stopping.is_set() or self._stepping_down.is_set()):
            self.alive_at = sent_at = self._clock()
            try:
                if not session.ping().held:
                    return "the lock session no longer holds the lock"
                if not leadership.extend(sent_at):
                    return "the last ping came back after the deadline"
                session.wait(self._bounds.ping_interval_seconds)
            except LockSessionError as error:
                return str(error)
            if not leadership.still_leads():
                return "no good ping before the deadline"
        return None

    def _wake(self) -> None:
        if (session := self._session) is not None:
            session.wake()

    def _tell_hidden(self, *, hidden: bool) -> None:
        """Once, until it is no longer so."""
        if hidden and not self._told_hidden:
            self._log.info(
                "eviction.excluded",
                reason="another role holds the lock; if it falls silent, the server's session timeout is waited for",
            )
        self._told_hidden = hidden

    def _tell_failed(self, error: LockSessionError) -> None:
        """A warning for each outage and each new reason, the rest of it at debug."""
        reason = str(error)
        tell = self._log.debug if reason in self._told else self._log.warning
        tell("session.failed", error=reason)
        self._told.add(reason)
        self.trouble = reason
