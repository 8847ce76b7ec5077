"""What the leader checks between two batches: other billers, and operators' commands.

Another biller is any program except this controller that charges instance-hours or writes a heartbeat.

Two programs that bill at the same time charge the same hours twice. The leader checks before it starts a term, before
each cycle, and every 30 seconds, even during a cycle. It stores its findings, and the view `billing_notices` (migration
045) decides what they mean, so every replica, the commands, the status page and the heartbeat get the same answer.

A *live daemon* writes heartbeats that aren't ours. While it is alive, the leader neither bills nor writes a heartbeat.
*Foreign periods* are periods that another program billed after our takeover. One of them is a warning. If there are
more, the leader stops billing until an operator runs `resume`, but keeps writing its heartbeat.

A pause is a notice too. The leader checks as soon as its ping shows a new command.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
import structlog

from controller import sql
from controller.billing import control
from controller.billing.errors import DeposedError, HaltedError
from controller.billing.ledger import Ledger
from controller.errors import BillingError, one_line
from controller.generation import GenerationError

#: Seconds between two checks.
LOOK_SECONDS: Final = 30.0
#: Seconds until the next check if the database could not be reached.
RETRY_SECONDS: Final = 5.0

log = structlog.get_logger(part="billing")


@dataclass(frozen=True)
class Notice:
    """A row of `billing_notices`: something about billing as a whole that operators must know.

    Attributes:
        kind: other_daemon, other_periods or paused.
        halts: True if the leader charges nothing until the cause is gone.
        since: when it was first seen, by the database's clock.
        message: what is wrong, and the remedy. A pause's message ends with the operator's words.
    """

    kind: str
    halts: bool
    since: datetime
    message: str

    @property
    def public_message(self) -> str:
        """The message without an operator's words, which may name a customer: for the HTTP port and Events."""
        return self.message.partition(" by ")[0] if self.kind == "paused" else self.message


def look(ledger: Ledger, term: int, *, keep: bool = True, between_cycles: bool = False) -> tuple[Notice, ...]:
    """Stores what other billers have done since the last check, answers commands, and returns the notices.

    Args:
        ledger: a ledger on the leader's session.
        term: the leader's term.
        keep: False, for a dry run, stores nothing and accepts any term.
        between_cycles: True if no batch is in hand. A run that still looks unfinished was then lost.

    Raises:
        DeposedError, GenerationError: the fence refused the term.
        psycopg.Error: the session is lost.
    """
    with ledger.fenced(term, keep=keep):
        sql.run(ledger.connection, "observe_daemons")
        sql.run(ledger.connection, "extend_takeover")
        sql.run(ledger.connection, "record_foreign_periods")
        sql.run(ledger.connection, "prune_foreign_periods")
        if between_cycles:
            ledger.close_abandoned_runs(term)
        control.answer(ledger.connection, between_cycles=between_cycles)
        return read_notices(ledger.connection)


def read_notices(connection: sql.Connection) -> tuple[Notice, ...]:
    """Reads the notices. Those that halt billing come first.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    return tuple(Notice(**row) for row in sql.rows(connection, "notices"))


def halting(notices: Sequence[Notice]) -> Notice | None:
    """Returns the notice that halts billing, or None."""
    return next((notice for notice in notices if notice.halts), None)


def refuse_if_halted(notices: Sequence[Notice]) -> None:
    """Raises HaltedError if a notice halts billing."""
    if (halt := halting(notices)) is not None:
        raise HaltedError(halt.message)


class Watch:
    """Checks for other billers every 30 seconds while a cycle runs, and at once if commands wait. The workers share it.

    Args:
        connect: opens a session in autocommit mode.
        term: the term that the cycle works under.
        look_seconds: time between two checks.
        clock: monotonic seconds.
        look_now: set by another thread; the next check looks, and clears it.
        on_waiting: called if a command waits for the end of the cycle.
    """

    def __init__(
        self,
        connect: Callable[[], Ledger],
        term: int,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        *,
        look_now: threading.Event | None = None,
        on_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._term = term
        self._look_seconds = look_seconds
        self._look_now = look_now or threading.Event()
        self._on_waiting = on_waiting
        self._clock = clock
        self._due_at = clock() + look_seconds
        self._looking = threading.Lock()

    def check(self) -> None:
        """Checks, if a check is due and no other thread is checking. If it fails, billing continues until the next one.

        Raises:
            HaltedError: billing is halted.
            DeposedError, GenerationError: the fence refused the term.
        """
        due = self._look_now.is_set() or self._clock() >= self._due_at
        if not due or not self._looking.acquire(blocking=False):
            return
        try:
            self._look_now.clear()
            self._due_at = self._clock() + self._look_seconds
            ledger = self._connect()
            with ledger.connection:
                refuse_if_halted(look(ledger, self._term))
                if control.waits_for_cycle(ledger.connection):
                    self._on_waiting()
        except (DeposedError, GenerationError, HaltedError):
            raise
        except (psycopg.Error, BillingError) as error:
            self._due_at = self._clock() + min(self._look_seconds, RETRY_SECONDS)
            log.debug("other_billers.unchecked", error=one_line(error))
        finally:
            self._looking.release()
