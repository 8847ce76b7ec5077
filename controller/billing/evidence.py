"""Decides whether an organization or the controller is at fault when an organization can't be charged.

The SQLSTATE doesn't tell them apart. A trigger may raise any code for one organization, and a revoked privilege, a full
disk or a check constraint may stop every organization. So if an organization fails alone before the cycle has charged
any other, the cycle tries other organizations alone, in transactions that are rolled back. If more than half of them
fail with the same error, and the others for known reasons such as a missing wallet, the controller is at fault.
"""

import re
from collections.abc import Callable
from threading import Event, Lock
from typing import Final

import psycopg

from controller.billing.values import Totals

#: Number of organizations to try, each alone and rolled back, to find out whether billing works.
TRIALS: Final = 8
#: If fewer organizations are due, there are too few to compare, so each failure is blamed on the organization.
FEWEST_ORGANIZATIONS: Final = 3

_ROUTINE: Final = re.compile(r"PL/pgSQL function (\S+?\(.*?\))")


class Evidence:
    """The evidence of one cycle. Its workers' threads share it."""

    def __init__(self) -> None:
        self._charged = Event()
        self._deciding = Lock()
        self._controller_at_fault: bool | None = None

    @property
    def anyone_charged(self) -> bool:
        """True once an instance has been charged, or could have been with a higher balance."""
        return self._charged.is_set()

    def add(self, totals: Totals) -> None:
        """Adds the totals of a transaction."""
        if totals.instances or totals.debts:
            self._charged.set()

    def controller_at_fault(self, try_others: Callable[[], bool]) -> bool:
        """Returns True if the controller is the reason that an organization failed alone.

        Args:
            try_others: tries other organizations; returns True if they all fail like this one. Called once per cycle.
        """
        with self._deciding:
            if self._controller_at_fault is None and not self.anyone_charged:
                self._controller_at_fault = try_others()
            return self._controller_at_fault is True and not self.anyone_charged


def signature(error: Exception) -> tuple[str | None, ...]:
    """Returns the SQLSTATE and the object of an error. Two errors with the same signature count as one cause."""
    if not isinstance(error, psycopg.Error):
        return type(error).__name__, str(error)
    diagnostics, sqlstate = error.diag, error.sqlstate or type(error).__name__
    routine = _ROUTINE.search(diagnostics.context or "")
    named = diagnostics.schema_name, diagnostics.table_name, diagnostics.constraint_name, routine and routine[1]
    # Class 42, access rule violations, names its object only in the message.
    message = diagnostics.message_primary if sqlstate.startswith("42") and not any(named) else None
    return sqlstate, *named, message
