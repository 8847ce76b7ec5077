"""Draws and causes random faults. A fault has a kind, a replica and a duration. At most two are active at a time."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg

from controller.demo.process import ExpectationError
from controller.postgres.connections import application_name
from tests.faults.proxy import Proxy, Way
from tests.faults.soak_slots import STOP_SECONDS, Slot
from tests.faults.wire import Statement, starts_with
from tests.support.processes import drain, freeze, thaw
from tests.support.servers import Server

#: Durations below and above each bound: the leader's deadline (1), the session timeout (2), the bound on an open
#: transaction (5).
SECONDS: Final = (0.1, 0.5, 0.9, 1.3, 2.2, 3.5, 5.5, 7.0)
GAP_SECONDS: Final = (0.1, 1.6)
AT_ONCE: Final = 2
SESSIONS: Final = ("elector", "worker", "guard", "cycle", "biller", "heartbeat", "")
HOLD_SECONDS: Final = 2.0
#: The statements of a worker's transaction.
STATEMENTS: Final = ("BEGIN", "select term, pg_current_xact_id", "with costed as materialized", "COMMIT")
_OPTIONS: Final = "-c lock_timeout=2s -c statement_timeout=20s -c idle_in_transaction_session_timeout=20s"
#: Lock rows of organizations with debts, because these are due in every cycle.
_ROWS: Final[tuple[LiteralString, ...]] = (
    "select from wallets where organization_id = %s for update",
    "select from vps_instances where organization_id = %s for update",
    "select from organizations where id = %s for update",
)
_DEBTORS: Final = "select distinct organization_id as id from vps_billing_cycles where status = 'failed' order by id"


@dataclass(frozen=True)
class Fault:
    """A drawn fault: its kind, its target (the leader or one replica) and its duration. `dice` decides the details."""

    kind: str
    to_leader: bool
    slot: int
    seconds: float
    dice: int

    def __str__(self) -> str:
        whom = "leader" if self.to_leader else f"replica {self.slot}"
        return f"{self.kind} ({whom}, {self.seconds:g} s, {self.dice})"


class Faults:
    """Draws faults from a seed and causes them until it is stopped. Then it repairs everything."""

    def __init__(self, server: Server, url: str, slots: list[Slot], customers: Proxy, seed: int) -> None:
        self._server = server
        self._url = url
        self._slots = slots
        self._customers = customers
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._room = threading.Semaphore(AT_ONCE)
        self._server_free = threading.Lock()
        self.drawn: list[Fault] = []
        self.errors: list[str] = []
        self._kinds: Mapping[str, tuple[int, Callable[[Fault, Slot], None]]] = {
            "killed": (8, self._kill),
            "killed inside a batch": (8, self._kill_inside),
            "frozen": (8, self._freeze),
            "frozen inside a batch": (10, self._freeze_inside),
            "frozen at a commit": (6, self._freeze_at_commit),
            "unplugged": (8, self._unplug),
            "old connections silent": (4, self._silence),
            "stuttering network": (4, self._stutter),
            "connections refused": (4, self._refuse),
            "session cut": (8, self._cut),
            "answer to a batch lost": (6, self._lose_answer),
            "session ended by the server": (8, self._end_session),
            "row locked by another session": (8, self._hold_row),
            "answer to a customer lost": (5, self._lose_customer),
            "drained": (5, self._drain),
            "stopped by SIGTERM": (5, self._terminate),
            "server restarted": (3, self._restart_server),
            "all replicas at once": (3, self._all_at_once),
        }

    @property
    def counts(self) -> Counter[str]:
        return Counter(fault.kind for fault in self.drawn)

    def run(self) -> None:
        """Draws and causes faults. The sequence depends on the seed alone, not on what the faults do."""
        threads = []
        while not self._stop.wait(self._chance.uniform(*GAP_SECONDS)):
            fault = self._draw()
            self._room.acquire()
            if self._stop.is_set():
                self._room.release()
                break
            self.drawn.append(fault)
            threads.append(threading.Thread(target=self._carry_out, args=(fault,), name=fault.kind))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Ends the active faults early."""
        self._stop.set()

    def _draw(self) -> Fault:
        chance = self._chance
        (kind,) = chance.choices(list(self._kinds), [weight for weight, _ in self._kinds.values()])
        return Fault(
            kind,
            chance.random() < 0.75,
            chance.randrange(len(self._slots)),
            chance.choice(SECONDS),
            chance.randrange(10**6),
        )

    def _carry_out(self, fault: Fault) -> None:
        try:
            slot = self._slots[fault.slot]
            if fault.to_leader:
                slot = self._leader() or slot
            self._kinds[fault.kind][1](fault, slot)
        except (AssertionError, ExpectationError, OSError, subprocess.SubprocessError) as error:
            self.errors.append(f"{fault}: {error}")
        finally:
            self._room.release()

    # --- faults of one replica

    def _kill(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors) as replica:
            replica.kill()
            self._stop.wait(fault.seconds / 4)

    def _kill_inside(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors) as replica, slot.proxy.hold("worker", _nth(fault.dice), _when(fault)) as hold:
            hold.reached.wait(HOLD_SECONDS)
            replica.kill()
            slot.proxy.cut(replica.instance)  # the kernel closes a dead process's connections

    def _freeze(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors) as replica:
            freeze(replica)
            self._stop.wait(fault.seconds)
            thaw(replica)

    def _freeze_inside(self, fault: Fault, slot: Slot) -> None:
        """Freezes a replica inside a statement. The statement arrives late, before or after the thaw."""
        with slot.taken(self.errors) as replica:
            with slot.proxy.hold("worker", _nth(fault.dice), _when(fault)) as hold:
                hold.reached.wait(HOLD_SECONDS)
                freeze(replica)
                self._stop.wait(fault.seconds)
                if fault.dice % 3 == 0:
                    thaw(replica)
            thaw(replica)

    def _freeze_at_commit(self, fault: Fault, slot: Slot) -> None:
        """Freezes a replica at its commit. The commit arrives while a successor waits, before the session ends."""
        with slot.taken(self.errors) as replica:
            with slot.proxy.hold("worker", _commits) as hold:
                hold.reached.wait(HOLD_SECONDS)
                freeze(replica)
                self._stop.wait(2.0 + fault.seconds / 3)
            thaw(replica)

    def _unplug(self, fault: Fault, slot: Slot) -> None:
        ways: tuple[tuple[Way, ...], ...] = (("up", "down"), ("up",), ("down",))
        with slot.taken(self.errors):
            slot.proxy.stall(*ways[fault.dice % 3])
            self._stop.wait(fault.seconds)
            slot.proxy.resume()

    def _silence(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors):
            slot.proxy.stall_present()
            self._stop.wait(fault.seconds)
            slot.proxy.resume()

    def _stutter(self, fault: Fault, slot: Slot) -> None:
        """Stalls a replica's traffic again and again, so that every statement takes longer."""
        with slot.taken(self.errors):
            for _ in range(int(fault.seconds * 5)):
                slot.proxy.stall()
                self._stop.wait(0.15)
                slot.proxy.resume()
                self._stop.wait(0.05)

    def _refuse(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors):
            slot.proxy.refuse()
            slot.proxy.cut(_session(fault))
            self._stop.wait(fault.seconds)
            slot.proxy.accept()

    def _cut(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors):
            slot.proxy.cut(_session(fault))

    def _lose_answer(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors), slot.proxy.hold("worker", _nth(fault.dice), "after") as hold:
            hold.reached.wait(HOLD_SECONDS)
            slot.proxy.cut("worker")

    def _end_session(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors) as replica:
            purposes = [_session(fault)] if _session(fault) else SESSIONS
            names = [application_name(purpose, replica.instance) for purpose in purposes]
            self._ask("select pg_terminate_backend(pid) from pg_stat_activity where application_name = any (%s)", names)

    def _drain(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors) as replica:
            command = drain(replica, *(["--timeout", f"{fault.seconds / 4:g}"] if fault.dice % 2 else []))
            out, err = command.communicate(timeout=STOP_SECONDS)
            if not out:  # the controller doesn't listen yet
                replica.signal(signal.SIGTERM)
            slot.ended(self.errors, f"{fault}: {command.returncode} {out} {err}")

    def _terminate(self, fault: Fault, slot: Slot) -> None:
        with slot.taken(self.errors) as replica:
            replica.signal(signal.SIGTERM)
            if fault.dice % 4 == 0:
                self._stop.wait(fault.seconds / 8)
                replica.signal(signal.SIGINT)  # a second signal cuts the drain short
            slot.ended(self.errors, str(fault))

    # --- faults of all

    def _hold_row(self, fault: Fault, _slot: Slot) -> None:
        """Locks a row in another session's open transaction."""
        with suppress(psycopg.Error), self._connect() as conn, conn.transaction():
            if debtors := conn.execute(_DEBTORS).fetchall():
                conn.execute(_ROWS[fault.dice % len(_ROWS)], debtors[fault.dice % len(debtors)])
                self._stop.wait(fault.seconds)

    def _lose_customer(self, fault: Fault, _slot: Slot) -> None:
        """Cuts a customer's connection at a commit, before or after it happens. The customer can't tell which."""
        with self._customers.hold("customers", _commits, _when(fault)) as hold:
            hold.reached.wait(HOLD_SECONDS)
            self._customers.cut()

    def _restart_server(self, fault: Fault, _slot: Slot) -> None:
        with self._server_free:
            self._server.stop("immediate" if fault.dice % 2 else "fast")
            self._stop.wait(fault.seconds / 4)
            self._server.start()

    def _all_at_once(self, fault: Fault, _slot: Slot) -> None:
        with ExitStack() as stack:
            replicas = [stack.enter_context(slot.taken(self.errors)) for slot in self._slots]
            if fault.dice % 3 == 0:
                for replica in replicas:
                    freeze(replica)
                self._stop.wait(fault.seconds)
                for replica in replicas:
                    thaw(replica)
            elif fault.dice % 3 == 1:
                for replica in replicas:
                    replica.kill()
            else:
                for replica in replicas:
                    replica.signal(signal.SIGTERM)
                for slot in self._slots:
                    slot.ended(self.errors, str(fault))

    # --- helpers

    def _leader(self) -> Slot | None:
        holders = self._ask("select holder from billing_leadership")
        return next((slot for slot in self._slots if (slot.replica.instance,) in holders), None)

    def _ask(self, query: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a query; none if the server can't be reached."""
        with suppress(psycopg.Error), self._connect() as conn:
            return conn.execute(query, parameters).fetchall()
        return []

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            self._url, autocommit=True, connect_timeout=5, options=_OPTIONS, application_name="faults"
        )


def _session(fault: Fault) -> str:
    return SESSIONS[fault.dice % len(SESSIONS)]


def _when(fault: Fault) -> Any:  # noqa: ANN401 - a literal
    return "after" if fault.dice % 5 < 2 else "before"


def _nth(dice: int) -> Callable[[Statement], bool]:
    """Chooses a statement of a worker's transaction; every other time its commit."""
    return starts_with(STATEMENTS[min(dice % 7, len(STATEMENTS) - 1)])


def _commits(statement: Statement) -> bool:
    return statement.sql == "COMMIT"
