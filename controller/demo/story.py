"""The demo: three replicas on an ephemeral PostgreSQL. It kills a leader, drains the next one, and checks every charge.

Every printed time and amount is measured, and every line with a tick is verified. The first failed check ends the demo.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import namedtuple_row

from controller import __version__
from controller.demo import sample
from controller.demo.process import ControllerProcess, ExpectationError, LogLine, run_command
from controller.demo.server import EphemeralServer

SIZE: Final = sample.Size(organizations=400, instances=30_000, skew=1.6)
NEW_INSTANCES: Final = 9_000
#: A cycle every few seconds instead of every hour, because the demo waits for the second one.
SETTINGS: Final = {"BILLING_INTERVAL_MINUTES": "0.05", "BILLING_BATCH_SIZE": "500"}
#: The leader is killed, and later drained, once it has charged this share of what is due.
SHARE: Final = 0.35
WAIT_SECONDS: Final = 30.0
NEXT: Final = """
  make run                       keep a controller running on sample data, and look at it
  make test                      all tests, on two versions of PostgreSQL
  docs/                          how leadership, money and the drain work"""

show = partial(print, flush=True)


def tell() -> int:
    """Runs the demo. Returns 0 if every check passed, 1 if not, 130 if interrupted. Raises: ServerError."""
    story = Story()
    try:
        story.tell()
    except KeyboardInterrupt:
        show("interrupted; nothing is left behind")
        return 130
    except (ExpectationError, psycopg.Error) as error:
        story.say(f"expected: {str(error).strip()}", "!")
        for process in getattr(error, "processes", ()):
            show(f"\nThe end of the log of process {process.pid}:\n{process.tail()}")
        return 1
    show(f"\nEvery check passed, in {time.monotonic() - story.began:.0f} s. Nothing is left behind.")
    if Path("Makefile").is_file():
        show(NEXT)
    return 0


class Story:
    """Runs the replicas, verifies what they do, and prints a line for each event."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._tick = "✓" if (sys.stdout.encoding or "").lower().startswith("utf") else "*"
        self._replicas: dict[ControllerProcess, str] = {}
        self._term = 0

    def tell(self) -> None:
        """Runs every part of the demo. Raises: ExpectationError."""
        show(f"containerstacks-billing {__version__}: three replicas, one PostgreSQL, one leader\n")
        with ExitStack() as stack:
            self._prepare(stack)
            self._elect(stack)
            self._crash()
            self._hand_over()
            self._prove()

    def say(self, text: str, mark: str = "", heading: str = "", *, continued: bool = False) -> None:
        """Prints a line of the story, with the time unless it continues the line before."""
        clock = "" if continued else f"{time.monotonic() - self.began:5.1f} s"
        show(f"{heading:<8} {clock:<7} {mark:<1} {text}")

    def _verified(self, text: str, heading: str = "") -> None:
        self.say(text, self._tick, heading)

    def _prepare(self, stack: ExitStack) -> None:
        server = stack.enter_context(EphemeralServer())
        self._folder = server.folder
        self.say(f"{server.installation.title} runs, for this demo alone", heading="prepare")
        self._url = server.create_database("containerstacks")
        self._ledger = psycopg.connect(self._url, autocommit=True, row_factory=namedtuple_row, application_name="demo")
        stack.callback(self._ledger.close)
        sample.create_schema(self._ledger)
        sample.create_data(self._ledger, SIZE)
        self._run("migrate")
        self._ledger.execute((sample.FOLDER / "ledger.sql").read_bytes())
        self._balance = self._row("select sum(balance) as wallets from wallets").wallets
        self._due = self._row("select count(*) from instance where since <= now() - interval '1 hour'").count
        wallets = f"${self._balance:,} in wallets"
        self.say(f"{SIZE.instances:,} instances, {SIZE.organizations} organizations, {wallets}")
        self.say("some wallets are short, one is missing, one plan is gone")

    def _elect(self, stack: ExitStack) -> None:
        started_at = datetime.now(UTC)
        for name in "ABC":
            replica = ControllerProcess(self._url, **SETTINGS)
            stack.callback(replica.remove)
            self._replicas[replica] = name
        pids = ", ".join(str(each.pid) for each in self._replicas)
        self.say(f"replicas A, B and C start: processes {pids}", heading="elect")
        elected = self._next_leader()
        standbys = [each for each in self._replicas if each is not self._leader]
        for each in standbys:
            each.wait_for("election.joined")
        taken = _milliseconds(started_at, elected)
        others = " and ".join(self._replicas[each] for each in standbys)
        self._verified(f"{self._name} leads {taken} after the start (term {self._term}); {others} stand by")

    def _crash(self) -> None:
        """Kills the leader in mid-cycle: a standby takes over and finishes the work."""
        first, name = self._leader, self._name
        first.wait_for("cycle.started")
        self.say(f"{name} bills: {self._due:,} instances are due", heading="crash")
        begun = self._until_charged(SHARE * self._due)
        killed_at = first.kill()
        self.say(f"{name} is killed (-9) in mid-cycle, with {begun.charged / self._due:.0%} of it charged")
        elected = self._next_leader()
        query: LiteralString = "select written_at as moment from billing_batches where term = %s order by 1 limit 1"
        batch = self._until(lambda: self._row(query, self._term), f"{self._name} commits a batch")
        self._verified(f"{self._name} leads {_milliseconds(killed_at, elected)} after the kill (term {self._term})")
        self._verified(f"{self._name} commits its first batch {_milliseconds(killed_at, batch)} after the kill")
        ids = begun.id, self._leader.wait_for("cycle.completed")["cycle"]
        begun, finished = (self._row("select * from cycle where id = %s", each) for each in ids)
        self._expect(
            (begun.outcome, finished.outcome), ("abandoned", "completed_with_failures"), "outcomes of the two cycles"
        )
        for each in (begun, finished):
            periods = self._row("select count(*) from period where status = 'billed' and run = %s", each.id).count
            self._expect(periods, each.charged, f"billed periods of cycle {each.id}")
        shares = f"{begun.charged:,} instances charged by {name}, {finished.charged:,} by {self._name}"
        self._verified(f"{self._name} finishes: {shares}")
        self._check_every_hour()
        self._verified("no hour is charged twice, none is left out")

    def _hand_over(self) -> None:
        """Sends SIGTERM in mid-cycle: the leader finishes the cycle, then hands over."""
        second, name = self._leader, self._name
        before, self._paid_in, wallets = self._until(self._add_work_between_cycles, f"{name} is between two cycles")
        paid = f"${self._paid_in:,.2f} is paid into {wallets} short wallets"
        self.say(f"{paid}; {NEW_INSTANCES:,} new instances", heading="handover")
        cut = self._until_charged(SHARE * NEW_INSTANCES, before)
        second.signal(signal.SIGTERM)
        self.say(f"{name} is told to stop (SIGTERM) in the middle of its next cycle")
        completed = second.wait_for("cycle.completed", cycle=cut.id)
        elected = self._next_leader()
        self._check_drained(second)
        charged = completed["instances"]
        self._expect(charged > cut.charged, True, f"{charged:,} instances are more than {cut.charged:,}")
        self._verified(f"{name} finishes it, {charged:,} instances charged, and ends: status 0")
        taken = _milliseconds(datetime.fromisoformat(completed["time"]), elected)
        self._verified(f"{self._name} leads {taken} after the end of that cycle (term {self._term})")
        self._leader.signal(signal.SIGTERM)
        self._check_drained(self._leader)
        self._verified(f"{self._name} is told to stop as well, and ends: status 0")

    def _add_work_between_cycles(self) -> tuple[int, Decimal, int] | None:
        """Pays into wallets and adds instances while no cycle can begin, so that the next cycle plans all of it.

        Returns:
            The last cycle's id, the amount and the number of wallets; None if a cycle runs.
        """
        with self._ledger.transaction():
            self._ledger.execute("lock table billing_runs in share mode")
            last = self._row("select id, outcome from cycle order by id desc limit 1")
            if last.outcome == "running":
                return None
            amount, wallets = self._row("select * from pg_temp.top_up()")
            self._row("select pg_temp.add_instances(%s)", NEW_INSTANCES)
        return last.id, amount, wallets

    def _prove(self) -> None:
        """Runs the audit, then checks the totals independently of the controller."""
        findings = json.loads(self._run("audit", "--json"))["findings"]
        broken = [each["invariant"] for each in findings if each["violations"]]
        self._expect(broken, [], "broken invariants")
        self._verified(f"audit clean: {len(findings)} invariants of the money hold", heading="prove")
        total = self._row("select * from totals")
        spent = self._balance + self._paid_in - total.wallets
        self._expect((total.charges, total.debits), (spent, spent), "charges and debits")
        self._verified(f"wallets: ${self._balance:,} + ${self._paid_in:,} paid in - ${total.wallets:,} left")
        self.say(f"= ${spent:,} = all charges = all debits", continued=True)
        self._expect(total.charged + total.unpaid, total.due, "hours charged or recorded as unpaid")
        self._check_every_hour()
        self._verified(f"hours: {total.due:,} due = {total.charged:,} charged + {total.unpaid:,} unpaid")
        self._expect(total.others, 0, "instances with hours unpaid for a reason other than money")
        owing = f"{total.short:,} instances owe ${total.owed:,.2f}, {total.without_wallet:,} have no wallet"
        self.say(f"unpaid: {owing}", continued=True)
        self._expect(total.off_price, 0, "charges that are a cent off their price")
        self._verified(f"{total.periods:,} charges, none a cent off its price / 730 x hours")
        example: Any
        for example in self._ledger.execute("select * from examples"):
            name, price = example.plan or "plan gone", example.monthly_price
            price = f"${price / 730:.3f}" if example.price_source == "default" else f"${price:.2f} / 730"
            by_hand = f"{price} x {example.hours} h = ${example.by_hand:.4f} -> ${example.amount:.2f}"
            self.say(f"{example.label}, {name}: {by_hand}", continued=True)

    def _row(self, query: LiteralString, *parameters: object) -> Any:  # noqa: ANN401 - columns of any type
        return self._ledger.execute(query, parameters or None).fetchone()

    def _run(self, *arguments: str) -> str:
        """The standard output of a one-off command, which must succeed."""
        done = run_command(*arguments, folder=self._folder, DATABASE_URL=self._url)
        self._expect(done.returncode, 0, f"exit status of `{arguments[0]}`, which printed {done.stderr or done.stdout}")
        return done.stdout

    def _next_leader(self) -> LogLine:
        """Waits until a replica is elected, under the next term."""
        self._term += 1

        def elected() -> tuple[ControllerProcess, LogLine] | None:
            found = ((each, line) for each in self._replicas for line in each.events("leader.elected"))
            return next((pair for pair in found if pair[1]["term"] >= self._term), None)

        line: LogLine
        self._leader, line = self._until(elected, "a replica is elected")
        self._name = self._replicas[self._leader]
        newest = self._row("select term from billing_leadership").term
        self._expect((line["term"], newest), (self._term, self._term), "terms, logged and stored")
        return line

    def _check_every_hour(self) -> None:
        wrong = self._row("select count(*) from wrongly_charged").count
        self._expect(wrong, 0, "instances with an hour charged twice or left out")

    def _check_drained(self, replica: ControllerProcess) -> None:
        outcome = replica.wait(), replica.wait_for("drain.completed")["outcome"]
        self._expect(outcome, (0, "completed"), "exit status and drain")

    def _until_charged(self, instances: float, after: int = 0) -> Any:  # noqa: ANN401 - the columns of cycle
        """Waits until the leader's newest cycle has charged this many, and isn't done."""

        def charged() -> Any:  # noqa: ANN401 - as above
            query: LiteralString = "select * from cycle where term = %s and id > %s order by id desc limit 1"
            cycle = self._row(query, self._term, after)
            return cycle if cycle and cycle.charged >= instances else None

        cycle = self._until(charged, f"{self._name} charges {instances:,.0f} instances")
        self._expect(cycle.outcome, "running", f"state of cycle {cycle.id}")
        return cycle

    def _until(self, look: Callable[[], Any], expected: str) -> Any:  # noqa: ANN401 - what is looked for
        """Looks every 10 ms until something is found. Raises: ExpectationError after 30 s."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise ExpectationError(f"{expected}; not within {WAIT_SECONDS:.0f} s", *self._replicas)
            time.sleep(0.01)
        return found

    def _expect(self, found: object, expected: object, what: str) -> None:
        if found != expected:
            raise ExpectationError(f"{what}: {expected}; found {found}", *self._replicas)


def _milliseconds(start: datetime, end: LogLine | Any) -> str:  # noqa: ANN401 - a row with a moment
    moment = datetime.fromisoformat(end["time"]) if isinstance(end, LogLine) else end.moment
    return f"{(moment - start).total_seconds() * 1000:,.0f} ms"
