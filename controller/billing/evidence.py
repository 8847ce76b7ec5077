"""Evidence for whose failure it is when an organization can't be charged: its own, or the controller's.

An SQLSTATE can't tell. A trigger may raise any code for one organization, and a revoked privilege, a full disk or a
check constraint may stop every organization. So the first organization that fails alone, in a cycle that has charged
nobody, has others tried alone, in transactions that are rolled back. If all fail alike, the controller is at fault.
"""

import re
from collections.abc import Callable
from threading import Event, Lock
from typing import Final

import psycopg

from controller.billing.values import Totals

#: Organizations that are tried alone before the controller takes the blame.
TRIALS: Final = 8
#: With fewer organizations due than this, failures count as theirs: too few to tell.
FEWEST_ORGANIZATIONS: Final = 3

_ROUTINE: Final = re.compile(r"PL/pgSQL function (\S+?\(.*?\))")


class Evidence:
    """What one cycle has found out. Its workers' threads share it."""

    def __init__(self) -> None:
        self._charged = Event()
        self._deciding = Lock()
        self._controller_at_fault: bool | None = None

    @property
    def anyone_charged(self) -> bool:
        """True once an instance has been charged, or was merely short of balance."""
        return self._charged.is_set()

    def add(self, totals: Totals) -> None:
        """Takes note of what a transaction did."""
        if totals.instances or totals.debts:
            self._charged.set()

    def controller_at_fault(self, try_others: Callable[[], bool]) -> bool:
        """Decides whose failure it is that an organization failed alone.

        Args:
            try_others: tries other organizations; returns True if they all fail like this one. Called once per cycle.
        """
        with self._deciding:
            if self._controller_at_fault is None and not self.anyone_charged:
                self._controller_at_fault = try_others()
            return self._controller_at_fault is True and not self.anyone_charged


def signature(error: Exception) -> tuple[str | None, ...]:
    """Returns the SQLSTATE and the object of an error. Two errors with the same signature have the same cause."""
    if not isinstance(error, psycopg.Error):
        return type(error).__name__, str(error)
    diagnostics, sqlstate = error.diag, error.sqlstate or type(error).__name__
    routine = _ROUTINE.search(diagnostics.context or "")
    named = diagnostics.schema_name, diagnostics.table_name, diagnostics.constraint_name, routine and routine[1]
    # class 42, access rule violations, names its object in the message alone
    message = diagnostics.message_primary if sqlstate.startswith("42") and not any(named) else None
    return sqlstate, *named, message
