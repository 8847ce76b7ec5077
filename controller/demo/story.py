"""The demo: three replicas on an ephemeral PostgreSQL. A leader is killed, the next one drained; the books are proved.

Everything that the story says is measured, and everything with a tick is verified. It ends at the first surprise.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg.rows import namedtuple_row
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller import __version__
from controller.demo import ledger, sample
from controller.demo.process import ControllerProcess, ExpectationError, LogLine, run_command
from controller.demo.server import EphemeralServer

SIZE: Final = sample.Size(organizations=400, instances=30_000, skew=1.6)
NEW_INSTANCES: Final = 9_000
#: A cycle every few seconds instead of every hour, so that the story doesn't wait for the second one.
SETTINGS: Final = {"BILLING_INTERVAL_MINUTES": "0.05", "BILLING_BATCH_SIZE": "500"}
#: The leader is killed, and later drained, once it has charged this much of what is due.
KILL_AT: Final = 0.4
DRAIN_AT: Final = 0.3
WAIT_SECONDS: Final = 30.0
COLUMNS: Final = ((8, "bold cyan"), (7, "dim"), (1, "bold green"))
NEXT: Final = (
    ("make run", "keep a controller running on sample data, and look at it"),
    ("make test", "all tests, on two versions of PostgreSQL"),
    ("docs/", "how leadership, money and the drain work"),
)

T = TypeVar("T")


def tell() -> int:
    """Tells the story on standard output.

    Returns:
        0 when everything held; 1 when something did not, with an explanation; 130 when interrupted.

    Raises:
        ServerError: there is no PostgreSQL to tell it with.
    """
    story = Story()
    try:
        story.tell()
    except KeyboardInterrupt:
        story.plain("interrupted; nothing is left behind")
        return 130
    except (ExpectationError, psycopg.Error) as error:
        story.say(f"expected: {str(error).strip()}", "!")
        for process in getattr(error, "processes", ()):
            story.plain(f"\nThe end of the log of process {process.pid}:\n{process.tail()}")
        return 1
    story.plain(f"\nAll of it held, in {story.seconds:.0f} s. Nothing is left behind.\n")
    for command, meaning in NEXT if Path("Makefile").is_file() else [(f"{program()} demo run", NEXT[0][1])]:
        story.plain(f"  {command:<30} {meaning}")
    return 0


def program() -> str:
    """This program, as a person types it here."""
    return "python -m controller" if sys.argv[0].endswith("__main__.py") else shlex.quote(sys.argv[0])


class Story:
    """Runs the replicas, verifies what they do, and prints a line for each event."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = 1000  # lines stay whole
        self._began = time.monotonic()
        self._replicas: dict[ControllerProcess, str] = {}
        self._term = 0

    def tell(self) -> None:
        """Tells every chapter. Raises: ExpectationError."""
        self.plain(f"containerstacks-billing {__version__}: three replicas, one PostgreSQL, one leader\n")
        with ExitStack() as stack:
            self._prepare(stack)
            self._elect(stack)
            self._crash()
            self._hand_over()
            self._prove()

    @property
    def seconds(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._began

    def say(self, text: str, mark: str = "", chapter: str = "", *, continued: bool = False) -> None:
        """Prints a line of the story, with the time unless it continues the line before."""
        grid = Table.grid(padding=(0, 1))
        for width, style in COLUMNS:
            grid.add_column(width=width, no_wrap=True, style=style)
        grid.add_row(chapter, "" if continued else f"{self.seconds:5.1f} s", mark, Text(text))
        self._console.print(grid)

    def plain(self, text: str) -> None:
        """Prints text outside the story's columns."""
        self._console.print(Text(text), soft_wrap=True)

    def _verified(self, text: str, chapter: str = "") -> None:
        self.say(text, "✓" if self._console.encoding.startswith("utf") else "*", chapter)

    def _prepare(self, stack: ExitStack) -> None:
        server = stack.enter_context(EphemeralServer())
        self._folder = server.folder
        self.say(f"{server.installation.title} runs, for this demo alone", chapter="prepare")
        self._url = server.create_database("containerstacks")
        self._ledger = psycopg.connect(self._url, autocommit=True, row_factory=namedtuple_row, application_name="demo")
        stack.callback(self._ledger.close)
        sample.create_schema(self._ledger)
        sample.create_data(self._ledger, SIZE)
        self._run("migrate")
        self._ledger.execute(ledger.SETUP)
        self._balance, self._due = self._row(ledger.WALLETS).balance, self._row(ledger.DUE).count
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
        self.say(f"replicas A, B and C start: processes {pids}", chapter="elect")
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
        self.say(f"{name} bills: {self._due:,} instances are due", chapter="crash")
        begun = self._until_charged(KILL_AT * self._due)
        killed_at = first.kill()
        self.say(f"{name} is killed (-9) in mid-cycle, with {begun.instances / self._due:.0%} of it charged")
        elected = self._next_leader()
        batch = self._until(lambda: self._row(ledger.FIRST_BATCH, self._term), f"{self._name} commits a batch")
        self._verified(f"{self._name} leads {_milliseconds(killed_at, elected)} after the kill (term {self._term})")
        self._verified(f"{self._name} commits its first batch {_milliseconds(killed_at, batch)} after the kill")
        ids = begun.id, self._leader.wait_for("cycle.completed")["cycle"]
        begun, finished = (self._row(ledger.CYCLE, each) for each in ids)
        self._expect((begun.outcome, finished.outcome), ("abandoned", "completed"), "outcomes of the two cycles")
        for each in (begun, finished):
            self._expect(self._row(ledger.PERIODS, each.id).count, each.instances, f"billed periods of cycle {each.id}")
        shares = f"{begun.instances:,} instances charged by {name}, {finished.instances:,} by {self._name}"
        self._verified(f"{self._name} finishes: {shares}")
        self._expect(self._row(ledger.WRONGLY_CHARGED).count, 0, "instances with an hour charged twice or left out")
        self._verified("no hour is charged twice, none is left out")

    def _hand_over(self) -> None:
        """Sends SIGTERM in mid-cycle: the leader finishes the cycle, then hands over."""
        second, name = self._leader, self._name
        before = self._row(ledger.NEWEST_CYCLE, self._term).id
        self._paid_in, wallets = self._row(ledger.TOP_UP)
        self._ledger.execute(ledger.ADD_INSTANCES, (NEW_INSTANCES,))
        paid = f"${self._paid_in:,.2f} is paid into {wallets} short wallets"
        self.say(f"{paid}; {NEW_INSTANCES:,} new instances", chapter="handover")
        cut = self._until_charged(DRAIN_AT * NEW_INSTANCES, before)
        second.signal(signal.SIGTERM)
        self.say(f"{name} is told to stop (SIGTERM) in the middle of its next cycle")
        completed = second.wait_for("cycle.completed", cycle=cut.id)
        elected = self._next_leader()
        self._check_drained(second)
        charged = completed["instances"]
        self._expect(charged > cut.instances, True, f"{charged:,} instances are more than {cut.instances:,}")
        self._verified(f"{name} finishes it, {charged:,} instances charged, and ends: status 0")
        taken = _milliseconds(datetime.fromisoformat(completed["time"]), elected)
        self._verified(f"{self._name} leads {taken} after the end of that cycle (term {self._term})")
        self._leader.signal(signal.SIGTERM)
        self._check_drained(self._leader)
        self._verified(f"{self._name} is told to stop, too, and ends: status 0")

    def _prove(self) -> None:
        """Audits, then does the sums again."""
        findings = json.loads(self._run("audit", "--json"))["findings"]
        broken = [each["invariant"] for each in findings if each["violations"]]
        self._expect(broken, [], "broken invariants")
        self._verified(f"audit clean: {len(findings)} invariants of the money hold", chapter="prove")
        total = self._row(ledger.TOTALS)
        spent = self._balance + self._paid_in - total.wallets
        self._expect((total.charges, total.debits), (spent, spent), "charges and debits")
        self._verified(f"wallets: ${self._balance:,} + ${self._paid_in:,} paid in - ${total.wallets:,} left")
        self.say(f"= ${spent:,} = all charges = all debits", continued=True)
        self._expect(total.charged + total.unpaid, total.due, "hours charged or recorded as unpaid")
        self._expect(self._row(ledger.WRONGLY_CHARGED).count, 0, "instances with an hour charged twice or left out")
        self._verified(f"hours: {total.due:,} due = {total.charged:,} charged + {total.unpaid:,} unpaid")
        self._expect(total.others, 0, "instances with hours unpaid for another reason than money")
        owing = f"{total.short:,} instances owe ${total.owed:,.2f}, {total.without_wallet:,} have no wallet"
        self.say(f"unpaid: {owing}", continued=True)
        self._expect(total.off_price, 0, "charges that are a cent off their price")
        self._verified(f"{total.periods:,} charges, none a cent off its price / 730 x hours")
        example: Any
        for example in self._ledger.execute(ledger.EXAMPLES):
            name, price = example.plan or "plan gone", example.monthly_price
            price = f"${price / 730:.3f}" if example.price_source == "default" else f"${price:.2f} / 730"
            by_hand = f"{price} x {example.hours} h = ${example.by_hand:.4f} -> ${example.amount:.2f}"
            self.say(f"{example.label}, {name}: {by_hand}", continued=True)

    @property
    def _name(self) -> str:
        return self._replicas[self._leader]

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
            return next(((each, line) for each, line in found if line["term"] >= self._term), None)

        self._leader, line = self._until(elected, "a replica is elected")
        self._expect((line["term"], self._row(ledger.TERM).term), (self._term, self._term), "terms logged and stored")
        return line

    def _check_drained(self, replica: ControllerProcess) -> None:
        found = replica.wait(), replica.wait_for("drain.completed")["outcome"]
        self._expect(found, (0, "completed"), "exit status and drain")

    def _until_charged(self, instances: float, after: int = 0) -> Any:  # noqa: ANN401 - the columns of CYCLE
        """Waits until the leader's newest cycle has charged this many, and isn't done."""

        def charged() -> Any:  # noqa: ANN401 - as above
            newest = self._row(ledger.NEWEST_CYCLE, self._term).id or 0
            cycle = self._row(ledger.CYCLE, newest) if newest > after else None
            return cycle if cycle and cycle.instances >= instances else None

        cycle = self._until(charged, f"{self._name} charges {instances:,.0f} instances")
        self._expect(cycle.outcome, "running", f"state of cycle {cycle.id}")
        return cycle

    def _until(self, look: Callable[[], T | None], expected: str) -> T:
        """Looks every 10 ms until something is found. Raises: ExpectationError after 30 s."""
        deadline, pause = time.monotonic() + WAIT_SECONDS, threading.Event()
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise ExpectationError(f"{expected}; not within {WAIT_SECONDS:.0f} s", *self._replicas)
            pause.wait(0.01)
        return found

    def _expect(self, found: object, expected: object, what: str) -> None:
        if found != expected:
            raise ExpectationError(f"{what}: {expected}; found {found}", *self._replicas)


def _milliseconds(start: datetime, end: LogLine | Any) -> str:  # noqa: ANN401 - a row with a moment
    moment = datetime.fromisoformat(end["time"]) if isinstance(end, LogLine) else end.moment
    return f"{(moment - start).total_seconds() * 1000:,.0f} ms"
