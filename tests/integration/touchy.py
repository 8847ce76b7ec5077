"""Ledgers that let a test intervene before a chosen statement, or around a chosen commit, of a real cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from controller import sql
from controller.billing.values import Batch, BatchResult, Pricing, ResumePoint, Run
from tests.integration.intercept import intercept
from tests.integration.world import LedgerAt, World

#: Begins or ends every transaction, before its fence or its roll-back.
UNCOUNTED: Final = {"set_transaction_settings", "backend_pid", "set_session_settings", "check_constraints_now"}


class TouchyLedger(LedgerAt):
    """Calls the test before chosen statements, counted over all sessions. A test needs a subclass for its own count."""

    counted: int
    names: list[str]
    before: dict[int, Callable[[TouchyLedger], None]]

    def __init_subclass__(cls) -> None:
        """Gives each subclass its own count."""
        cls.counted, cls.names, cls.before = 0, [], {}

    def __init__(self, connection: sql.Connection, pricing: Pricing, holder: str) -> None:
        super().__init__(connection, pricing, holder)
        intercept(connection, self._count)

    def _count(self, name: str, text: str) -> str:
        if name in UNCOUNTED:
            return text
        kind = type(self)
        kind.names.append(name)
        act = kind.before.pop(kind.counted, None)
        kind.counted += 1
        if act is not None:
            act(self)
        return text


def touchy_kind(world: World) -> type[TouchyLedger]:
    """The class of a touchy world's ledgers, on which a test sets the actions."""
    assert issubclass(world.ledger_class, TouchyLedger)
    return world.ledger_class


Act = Callable[[TouchyLedger, bool], None]


class TouchyAtCommit(TouchyLedger):
    """`commits[n]` is called around the nth charge's commit: with True before it and with False after it."""

    charges = 0
    _act: Act | None = None
    commits: dict[int, Act] = {}  # noqa: RUF012 - set for each cycle

    @classmethod
    def calm(cls) -> None:
        """Removes all actions before the next cycle."""
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

    def _around_commit(self, before: bool) -> None:  # noqa: FBT001 - as commits has it
        if self._act is not None:
            self._act(self, before)
