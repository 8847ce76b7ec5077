"""A scripted lock session and a simulated clock, for tests of the elector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controller.election import Attempt, Bounds, Elector, Holder, Leadership, LockSessionError, Ping, Predecessor

HELD = Ping(held=True)
NOT_HELD = Ping(held=False)


@dataclass
class World:
    """An elector with a simulated clock, the sessions that it opens in order, and a record of what it did with them.

    When no session is left, the elector is stopped, so that `run` returns.
    """

    sessions: list[Session | Exception] = field(default_factory=list)
    now: float = 1000.0
    calls: list[tuple[float, int, str]] = field(default_factory=list)
    opened: int = 0
    terms: int = 0
    elected: list[Leadership] = field(default_factory=list)
    ended: list[tuple[int, str | None]] = field(default_factory=list)
    at_end: list[list[str]] = field(default_factory=list)
    led_when_elected: list[bool] = field(default_factory=list)
    jitter: Callable[[], float] = lambda: -0.5  # makes the wait after a failure zero
    evicts: bool = True
    evictions: int = 0
    freeze_at: int = 0
    reads: int = 0
    seen: list[tuple[int, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.elector = Elector(
            connect=self.connect,
            bounds=Bounds(),
            clock=self.clock,
            on_elected=self._on_elected,
            on_ended=self._on_ended,
            evicts=self.evicts,
            on_evicted=self._on_evicted,
            jitter=self.jitter,
        )

    def clock(self) -> float:
        """Read number `freeze_at` finds that the process was frozen for seven seconds."""
        self.reads += 1
        self.now += 7 * (self.reads == self.freeze_at)
        return self.now

    def connect(self) -> Session:
        if not self.sessions:
            self.elector.stop()
            raise LockSessionError("no more sessions")
        session = self.sessions.pop(0)
        if isinstance(session, Exception):
            raise session
        self.opened += 1
        session.world, session.number = self, self.opened
        return session

    def run(self, *sessions: Session | Exception) -> World:
        self.sessions += sessions
        self.elector.run()
        return self

    def did(self, session: int = 1) -> list[str]:
        """The calls made on a session, in order."""
        return [call for _, number, call in self.calls if number == session]

    def _on_evicted(self) -> None:
        self.evictions += 1

    @property
    def deposed(self) -> list[int]:
        """The terms that ended involuntarily."""
        return [term for term, reason in self.ended if reason is not None]

    def _on_ended(self, leadership: Leadership, reason: str | None) -> None:
        assert not leadership.still_leads()
        self.ended.append((leadership.term, reason))
        self.at_end.append(self.did(self.opened))

    def _on_elected(self, leadership: Leadership) -> None:
        self.elected.append(leadership)
        self.led_when_elected.append(leadership.still_leads())


class Session:
    """A lock session that answers from a script of values, errors to raise and callables; then as a healthy one would.

    A `wait` beyond the script stops the elector. For `contend`, True and False stand for an Attempt. A wait
    without success takes all of its time.
    """

    def __init__(self, **script: list[Any]) -> None:
        self.script = {name: list(answers) for name, answers in script.items()}  # a test may run twice in one process
        self.world = World.__new__(World)
        self.number = 0
        self.closed = False
        self.evicted: list[Holder] = []

    def contend(self, wait_seconds: float) -> Attempt:
        assert wait_seconds >= 0
        answer = self._answer("contend", True)
        attempt = answer if isinstance(answer, Attempt) else Attempt(taken=bool(answer))
        if not attempt.taken:
            self.world.now += wait_seconds
        return attempt

    def evict(self, holder: Holder) -> bool:
        self.evicted.append(holder)
        return bool(self._answer("evict", True))

    def mint(self) -> int:
        self.world.terms += 1
        term = self._answer("mint", self.world.terms)
        assert isinstance(term, int)
        return term

    def predecessor(self) -> Predecessor | None:
        answer = self.script.get("predecessor", [None])[0]
        assert answer is None or isinstance(answer, Predecessor)
        return answer

    def ping(self) -> Ping:
        answer = self._answer("ping", HELD)
        assert isinstance(answer, Ping)
        return answer

    def wait(self, timeout_seconds: float) -> None:
        self.world.now += timeout_seconds
        self._answer("wait", stop)

    def wake(self) -> None:
        self._answer("wake", None)

    def resign(self) -> None:
        self._answer("resign", None)

    def close(self) -> None:
        self.closed = True
        self._answer("close", None)

    def _answer(self, name: str, otherwise: object) -> object:
        assert name in {"close", "wake"} or not self.closed, f"{name} on a closed session"
        self.world.calls.append((self.world.now, self.number, name))
        self.world.seen += [(leadership.term, leadership.still_leads()) for leadership in self.world.elected]
        answers = self.script.get(name, [])
        answer = answers.pop(0) if answers else otherwise
        if isinstance(answer, Exception):
            raise answer
        return answer(self.world) if callable(answer) else answer


def later(seconds: float, answer: object = HELD) -> Callable[[World], object]:
    """An answer that arrives after this time."""

    def answered(world: World) -> object:
        world.now += seconds
        return answer

    return answered


def stop(world: World) -> None:
    world.elector.stop()
