"""Ledgers that run a test's code before chosen statements, or around chosen commits, of a real cycle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

from controller import sql
from controller.billing.values import Batch, BatchResult, Pricing, ResumePoint, Run
from tests.integration.intercept import intercept
from tests.integration.world import LedgerAt, World

#: Statements that open a session, or end a dry transaction. They are not counted.
UNCOUNTED: Final = {"backend_pid", "check_constraints_now"}


class ScriptedLedger(LedgerAt):
    """Calls a test's code before chosen statements of its sessions. Each test needs a subclass: it holds the script.

    Attributes:
        names: the statements executed since the subclass was made or `names` was cleared, in order.
        counted: how many statements have been executed since it was last set to zero.
        before: the code to call before the statement of each number, called once.
    """

    counted: int
    names: list[str]
    before: dict[int, Act]
    _before_name: dict[str, list[Act | None]]

    def __init_subclass__(cls) -> None:
        cls.counted, cls.names, cls.before, cls._before_name = 0, [], {}, {}

    def __init__(self, connection: sql.Connection, pricing: Pricing, holder: str) -> None:
        super().__init__(connection, pricing, holder)
        intercept(connection, self._count)

    @classmethod
    def act_before(cls, name: str, act: Act, occurrence: int = 1) -> None:
        """Calls `act` once, before the first statement of this name from now on, or before a later occurrence."""
        cls._before_name[name] = [*[None] * (occurrence - 1), act]

    def _count(self, name: str, text: str) -> str:
        if name in UNCOUNTED:
            return text
        script = type(self)
        script.names.append(name)
        act = script.before.pop(script.counted, None)
        script.counted += 1
        if act is None and (waiting := script._before_name.get(name)):
            act = waiting.pop(0)
        if act is not None:
            act(self)
        return text


Act = Callable[[ScriptedLedger], None]


def script_of(world: World) -> type[ScriptedLedger]:
    """Returns the class of the world's ledgers, to which a test gives its script."""
    assert issubclass(world.ledger_class, ScriptedLedger)
    return world.ledger_class


def concurrently(world: World, statement: str, *parameters: object) -> Act:
    """Returns an act: another session executes the statement, and commits once the ledger's session waits for it."""

    def execute(ledger: ScriptedLedger) -> None:
        other = psycopg.connect(world.url)
        other.execute(statement.encode(), parameters)

        def commit() -> None:
            with World(world.url) as watching, other:
                watching.wait_for_lock(ledger.connection.info.backend_pid)

        threading.Thread(target=commit, name="concurrent transaction").start()

    return execute


#: Takes the ledger, and True before the commit or False after it.
ActAtCommit = Callable[[ScriptedLedger, bool], None]


class CommitScriptedLedger(ScriptedLedger):
    """Calls `commits[n]` before and after the commit of the nth charge, counted from zero."""

    charges = 0
    _act: ActAtCommit | None = None
    commits: dict[int, ActAtCommit] = {}  # noqa: RUF012 - set for each cycle

    @classmethod
    def reset(cls) -> None:
        """Forgets the script and starts counting again."""
        cls.charges, cls.counted, cls.before, cls.commits = 0, 0, {}, {}

    def charge(
        self, run: Run, batch: Batch, after: ResumePoint | None, limit: int | None, *, lock_first: bool = False
    ) -> BatchResult:
        charged = super().charge(run, batch, after, limit, lock_first=lock_first)
        self._act = type(self).commits.get(type(self).charges)
        type(self).charges += 1
        return charged

    @contextmanager
    def fenced(
        self, term: int, *, keep: bool = True, enforce: bool | None = None, needs_heartbeat: bool = False
    ) -> Iterator[None]:
        self._act = None
        with super().fenced(term, keep=keep, enforce=enforce, needs_heartbeat=needs_heartbeat):
            yield
            self._around_commit(True)
        self._around_commit(False)

    def _around_commit(self, before: bool) -> None:  # noqa: FBT001 - as ActAtCommit takes it
        if self._act is not None:
            self._act(self, before)
