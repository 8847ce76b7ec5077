"""The loop that contends for the lock, leads and resigns, on one thread. The package's docstring specifies it."""

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

import structlog

from controller.election.bounds import Bounds, Clock
from controller.election.leadership import Leadership
from controller.election.session import LockSession, LockSessionError, Predecessor
from controller.election.silence import Silence
from controller.errors import one_line
from controller.log import WarnOnce

#: Pause after a session that failed, before jitter.
RETRY_SECONDS = 1.0
#: Seconds between two pings of a replica that has stepped down and doesn't contend yet.
BACK_OFF_PING_SECONDS = 1.0

log = structlog.get_logger(part="election")


class Role(StrEnum):
    """What a replica is doing, as probes and people see it."""

    CONNECTING = "connecting"
    STANDBY = "standby"
    LEADER = "leader"
    STOPPED = "stopped"


class Elector:
    """Contends for the lock until it is stopped.

    Every callback runs on the elector's thread and must not block.

    Args:
        connect: opens a lock session; raises LockSessionError if it can't.
        bounds: the three bounds.
        clock: monotonic seconds.
        on_elected: called with each new leadership.
        on_ended: called once for each leadership, after it has ended and its lock session is closed. The second
            argument is the reason, or None after a resignation.
        on_joined: called each time this replica becomes a standby.
        evicts: True if a standby ends the session of a leader that has been silent past its own deadline.
        on_evicted: called after each eviction.
        on_command: called when a ping shows a command that this leadership has not seen.
        jitter: random numbers in [0, 1).
    """

    def __init__(
        self,
        *,
        connect: Callable[[], LockSession],
        bounds: Bounds,
        clock: Clock,
        on_elected: Callable[[Leadership], None],
        on_ended: Callable[[Leadership, str | None], None],
        on_joined: Callable[[], None] = lambda: None,
        evicts: bool = False,
        on_evicted: Callable[[], None] = lambda: None,
        on_command: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._connect = connect
        self._bounds = bounds
        self._clock = clock
        self._on_elected = on_elected
        self._on_ended = on_ended
        self._on_joined = on_joined
        self._evicts = evicts
        self._on_evicted = on_evicted
        self._on_command = on_command
        self._jitter = jitter
        self._session: LockSession | None = None
        self._leadership: Leadership | None = None
        self._stopping = threading.Event()
        self._contend_again_at = clock()
        self._failures = WarnOnce(log, "session.failed")
        self._evicted: str | None = None
        self._other_role_holds = False
        self._without_term: tuple[str | None, float] = None, 0.0
        self._intruders = WarnOnce(log, "lock.held_without_term", level="error")
        self.role = Role.CONNECTING
        #: Why this replica has not joined the election, or has dropped out of it; one line.
        self.trouble: str | None = None
        #: When the loop last began a round; monotonic seconds.
        self.alive_at = clock()

    @property
    def term(self) -> int | None:
        """The term in which this replica may believe that it leads, at this moment; None if it doesn't."""
        leadership = self._leadership
        return leadership.term if leadership is not None and leadership.still_leads() else None

    def stop(self) -> None:
        """Resigns if this replica leads, and ends the loop. The work must have stopped. Any thread, idempotent."""
        self._stopping.set()
        self._wake()

    def run(self) -> None:
        """Contends and leads until `stop` is called. Holds nothing when it returns."""
        while not self._stopping.is_set():
            self.alive_at = self._clock()
            self.role = Role.CONNECTING
            try:
                self._session = self._connect()
                try:
                    self._use(self._session)
                finally:
                    self._session = None
            except LockSessionError as error:
                self.role = Role.CONNECTING
                self.trouble = one_line(error)
                self._failures.failed(self.trouble, error=self.trouble)
                self._stopping.wait(RETRY_SECONDS * (0.5 + self._jitter()))
        self.role = Role.STOPPED

    def _use(self, session: LockSession) -> None:
        """Stands by and leads on one session. Always closes it at the end, and then reports a leadership's end."""
        reason: str | None = "the elector failed"
        try:
            self._leadership = self._stand_by(session)
            if self._leadership is not None:
                reason = self._lead(session, self._leadership)
        finally:
            session.close()
            leadership, self._leadership = self._leadership, None
            if leadership is not None:
                self._report_end(leadership, reason)

    def _stand_by(self, session: LockSession) -> Leadership | None:
        """Waits for the lock until this replica wins or is stopped."""
        silence = Silence(self._clock)
        wait_seconds = 0.0  # so that the replica joins without delay
        while not self._stopping.is_set():
            self.alive_at = self._clock()
            if self.alive_at < self._contend_again_at:
                self._sit_out(session)
                continue
            attempt = session.contend(wait_seconds)
            if self._stopping.is_set():
                break  # closing the session frees the lock if it was granted
            if attempt.taken:
                return self._win(session, self.alive_at)
            if self._evicts:
                silence.observe(attempt.holder)
                self._report_other_role(other_role=attempt.other_role)
            self._observe_without_term(attempt.without_term)
            if not self._is_shut_out:
                self._joined()
            self._evict(session, silence)
            wait_seconds = max(min(self._bounds.wait_seconds, silence.remaining_seconds), 0.0)
        return None

    def _sit_out(self, session: LockSession) -> None:
        """Waits out the last leadership's back-off without contending. The session stays ready."""
        session.ping()  # the server ends a session that stays silent
        self._joined()
        session.wait(min(BACK_OFF_PING_SECONDS, self._contend_again_at - self.alive_at))

    @property
    def _is_shut_out(self) -> bool:
        """True if one session has held the lock without a term for longer than an election can take."""
        holder, since = self._without_term
        return holder is not None and self._clock() - since > self._bounds.session_timeout_seconds

    def _observe_without_term(self, holder: str | None) -> None:
        """Reports a session that keeps every replica from leading. This replica is not ready until it has ended."""
        if holder != self._without_term[0]:
            self._without_term = holder, self._clock()
            self._intruders.worked()
        if self._is_shut_out:
            self.role = Role.CONNECTING
            self.trouble = f"{holder} holds the billing lock without a term, so no replica can lead; end that session"
            self._intruders.failed(
                holder=holder, remedy="end that session: no replica can lead while it holds the lock"
            )

    def _joined(self) -> None:
        if self.role is not Role.STANDBY:
            log.info("election.joined")
            self._failures.worked()
            self.role, self.trouble = Role.STANDBY, None
            self._on_joined()

    def _evict(self, session: LockSession, silence: Silence) -> None:
        """Ends the session of a leader that has been silent past its own deadline."""
        holder, seconds = silence.expired_holder, silence.seconds
        if holder is None:
            return
        silence.observe(None)
        if session.evict(holder):
            self._evicted = holder.instance
            log.warning("leader.evicted", holder=holder.instance, silent_seconds=round(seconds, 1))
            self._on_evicted()

    def _win(self, session: LockSession, sent_at: float) -> Leadership:
        """Mints a term. `sent_at`: when the statement that took the lock was sent."""
        term = session.mint()
        leadership = Leadership(term, self._clock, self._bounds.leader_deadline_seconds, sent_at, self._wake)
        if not leadership.still_leads():
            raise LockSessionError("minting the term took longer than a leader may go without a ping")
        return leadership

    def _lead(self, session: LockSession, leadership: Leadership) -> str | None:
        """Leads until the end; returns why this replica was deposed, or None after a resignation."""
        self._failures.worked()
        self.role, self.trouble = Role.LEADER, None
        log.info("leader.elected", term=leadership.term, **self._succession(session.predecessor()))
        self._on_elected(leadership)
        try:
            reason = self._ping_until_over(session, leadership)
        finally:
            leadership.end()
            self._contend_again_at = self._clock() + leadership.back_off_seconds
            self.role = Role.CONNECTING
        if reason is None:
            with suppress(LockSessionError):
                session.resign()
        return reason

    def _succession(self, predecessor: Predecessor | None) -> dict[str, str]:
        """Returns this leader's predecessor and how its leadership ended, for the log."""
        evicted, self._evicted = self._evicted, None
        if predecessor is None:
            return {}
        if predecessor.resigned:
            ended = "resigned"
        else:
            ended = "evicted" if evicted and predecessor.instance.endswith(evicted) else "gone"
        return {"predecessor": predecessor.instance, "predecessor_ended": ended}

    def _ping_until_over(self, session: LockSession, leadership: Leadership) -> str | None:
        """Pings while this replica leads; returns why it was deposed, or None if it is to resign."""
        seen_command: int | None = None
        while not (self._stopping.is_set() or leadership.stepping_down):
            self.alive_at = sent_at = self._clock()
            try:
                ping = session.ping()
                if not ping.held:
                    return "the lock session no longer holds the lock"
                if not leadership.extend(sent_at):
                    return "the last ping came back after the deadline"
                if ping.newest_command != seen_command:
                    seen_command = ping.newest_command
                    self._on_command()
                session.wait(self._bounds.ping_interval_seconds)
            except LockSessionError as error:
                return one_line(error)
            if not leadership.still_leads():
                return "no good ping before the deadline"
        return None

    def _report_end(self, leadership: Leadership, reason: str | None) -> None:
        if reason is None:
            log.info("leader.resigned", term=leadership.term)
        else:
            log.warning("leader.deposed", term=leadership.term, reason=reason)
        self._on_ended(leadership, reason)

    def _report_other_role(self, *, other_role: bool) -> None:
        if other_role and not self._other_role_holds:
            log.info(
                "eviction.excluded",
                reason="another database role holds the lock; only the server's session timeout can end its session",
            )
        self._other_role_holds = other_role

    def _wake(self) -> None:
        if (session := self._session) is not None:
            session.wake()
