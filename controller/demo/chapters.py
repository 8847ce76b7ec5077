"""The story's chapters: elected, killed, handed over. Each goes on where the one before it ended."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from controller.demo import sample
from controller.demo.books import Books, Cycle, Funds
from controller.demo.replicas import Entry, ExpectationError, Replica, Troupe, expect
from controller.demo.teller import Teller, dollars, milliseconds

SIZE: Final = sample.Size(organizations=400, instances=30_000, skew=1.6)
NEWCOMERS: Final = 9_000
#: A cycle every few seconds instead of every hour, so that the second one need not be waited for.
INTERVAL_SECONDS: Final = 3.0
SETTINGS: Final = {
    "BILLING_TAKEOVER_DELAY_SECONDS": "0",
    "BILLING_INTERVAL_MINUTES": str(INTERVAL_SECONDS / 60),
    "BILLING_BATCH_SIZE": "500",
    "BILLING_HTTP_ADDRESS": "none",
    "BILLING_KUBERNETES": "off",
}
#: The leader is killed, and told to stop, when so much of its cycle is committed.
KILL_AT: Final = 0.4
STOP_AT: Final = 0.3

STEP_SECONDS: Final = 20.0
CYCLE_SECONDS: Final = 40.0


class Chapters:
    """Tells and verifies. `funds` is what the proof starts from."""

    def __init__(self, teller: Teller, troupe: Troupe, books: Books, url: str) -> None:
        self._teller = teller
        self._troupe = troupe
        self._books = books
        self._url = url
        self._due = 0
        self._leader: Replica
        self._term = 0
        self.funds: Funds

    def open_books(self) -> None:
        """Notes how everything stands before the first cycle."""
        self._books.note_instances()
        self.funds = Funds(self._books.money().wallets, Decimal(0))
        self._due = self._books.due()
        self._teller.say(
            f"{SIZE.instances:,} instances, {SIZE.organizations} organizations, {dollars(self.funds.before)} in wallets"
        )
        self._teller.say("some wallets are short, one is missing, one plan is gone")

    def elect(self) -> None:
        """Three replicas, one leader."""
        self._teller.chapter("elect")
        started_at = datetime.now(UTC)
        replicas = [self._troupe.start(name, SETTINGS | {"DATABASE_URL": self._url}) for name in "ABC"]
        pids = ", ".join(str(each.pid) for each in replicas)
        self._teller.say(f"replicas A, B and C start: processes {pids}")
        with self._teller.waiting("electing"):
            elected = self._until_elected(after=started_at)
            standbys = [each for each in replicas if each is not elected.replica]
            for standby in standbys:
                self._until_heard("election.joined", of=standby)
        self._take(elected)
        others = " and ".join(each.name for each in standbys)
        self._teller.verified(
            f"{self._leader.name} leads {milliseconds(started_at, elected.time)} after the start (term {self._term});"
            f" {others} stand by"
        )

    def kill_the_leader(self) -> None:
        """A crash in the middle of a cycle: a standby takes over and finishes it."""
        teller, first = self._teller, self._leader
        teller.chapter("crash")
        self._until_heard("cycle.started", of=first)
        teller.say(f"{first.name} bills: {self._due:,} instances are due")
        with teller.waiting(f"{first.name} bills"):
            cut = self._until_charged(round(KILL_AT * self._due))
            killed_at = first.kill()
        teller.say(f"{first.name} is killed (-9) in mid-cycle, with {cut.instances / self._due:.0%} of it charged")
        with teller.waiting("electing"):
            self._take(self._until_elected(after=killed_at))
            elected_at, second, term = self._elected_at, self._leader, self._term
            batch_at = self._troupe.until(
                lambda: self._books.first_batch_at(term), STEP_SECONDS, f"{second.name} commits a batch"
            )
        teller.verified(f"{second.name} leads {milliseconds(killed_at, elected_at)} after the kill (term {term})")
        teller.verified(f"{second.name} commits its first batch {milliseconds(killed_at, batch_at)} after the kill")
        with teller.waiting(f"{second.name} finishes the cycle"):
            self._until_heard("cycle.completed", of=second, seconds=CYCLE_SECONDS)
        self._check_finished(first, cut)

    def hand_over(self) -> None:
        """SIGTERM in the middle of a cycle: it is finished first, then the leadership is handed over."""
        teller, second = self._teller, self._leader
        teller.chapter("handover")
        before = self._books.cycle_of(self._term, newest=True)
        paid_in, topped_up = self._books.top_up()
        self.funds = Funds(self.funds.before, paid_in)
        self._books.add_newcomers(NEWCOMERS)
        teller.say(f"{dollars(paid_in)} is paid into {topped_up} short wallets; {NEWCOMERS:,} new instances")
        with teller.waiting(f"the next cycle is due within {INTERVAL_SECONDS:.0f} s"):
            cut = self._until_charged(round(STOP_AT * NEWCOMERS), after=before)
            stopped_at = second.terminate()
        teller.say(f"{second.name} is told to stop (SIGTERM) in the middle of its next cycle")
        with teller.waiting(f"{second.name} finishes its cycle"):
            self._until_heard("drain.started", of=second)
            completed = self._until_heard("cycle.completed", of=second, after=stopped_at, seconds=CYCLE_SECONDS)
            elected = self._until_elected(after=stopped_at)
            self._check_drained(second)
        expect(
            completed.fields["cycle"] == cut.id and completed.fields["instances"] > cut.instances,
            f"{second.name} finishes cycle {cut.id}, {cut.instances:,} charged when it was told to stop;"
            f" it finished {completed.fields['cycle']} with {completed.fields['instances']:,}",
            second,
        )
        self._take(elected)
        teller.verified(
            f"{second.name} finishes it, {completed.fields['instances']:,} instances charged, and ends: status 0"
        )
        taken = milliseconds(completed.time, elected.time)
        teller.verified(f"{self._leader.name} leads {taken} after the end of that cycle (term {self._term})")
        with teller.waiting(f"{self._leader.name} stops"):
            self._leader.terminate()
            self._check_drained(self._leader)
        teller.verified(f"{self._leader.name} is told to stop, too, and ends: status 0")

    def _check_finished(self, first: Replica, cut: Cycle) -> None:
        """Two cycles of two leaders, and together they charged everything once."""
        begun, finished = self._books.cycle_of(self._term - 1), self._books.cycle_of(self._term)
        if begun is None or finished is None or begun.id != cut.id:
            raise ExpectationError(f"each leader has a cycle; they have {begun} and {finished}", self._leader)
        outcomes = (begun.outcome, finished.outcome)
        expect(outcomes == ("abandoned", "completed"), f"one cycle is abandoned, one completed; they are {outcomes}")
        for each in (begun, finished):
            counted = self._books.charged_by(each.id)
            expect(each.instances > 0, f"each leader charges something; cycle {each.id} charged nothing")
            expect(
                counted == each.instances,
                f"cycle {each.id} leaves a billed period for each of its {each.instances:,} instances; it left"
                f" {counted:,}",
            )
        amiss = self._books.charged_amiss()
        self._teller.verified(
            f"{self._leader.name} finishes: {begun.instances:,} instances charged by {first.name},"
            f" {finished.instances:,} by {self._leader.name}"
        )
        expect(amiss == 0, f"no hour is charged twice or left out; on {amiss:,} instances one is")
        self._teller.verified("no hour is charged twice, none is left out")

    def _check_drained(self, replica: Replica) -> None:
        drained = self._until_heard("drain.completed", of=replica)
        status = replica.wait_until_ended()
        expect(
            drained.fields.get("outcome") == "completed" and status == 0,
            f"{replica.name} drains and ends with status 0; the drain was {drained.fields.get('outcome')},"
            f" the status is {status}",
            replica,
        )

    def _take(self, elected: Entry) -> None:
        """Notes who leads now."""
        previous, newest = self._term, self._books.term()
        self._leader, self._term, self._elected_at = elected.replica, int(elected.fields["term"]), elected.time
        expect(
            self._term == previous + 1 == newest,
            f"terms count up by one; after {previous} came {self._term}, and the database says {newest}",
            self._leader,
        )

    def _until_elected(self, *, after: datetime) -> Entry:
        return self._troupe.until(
            lambda: self._troupe.heard("leader.elected", after=after), STEP_SECONDS, "a replica is elected"
        )

    def _until_heard(
        self, event: str, *, of: Replica, after: datetime | None = None, seconds: float = STEP_SECONDS
    ) -> Entry:
        return self._troupe.until(
            lambda: self._troupe.heard(event, of=of, after=after), seconds, f"{of.name} logs {event}"
        )

    def _until_charged(self, instances: int, *, after: Cycle | None = None) -> Cycle:
        """Waits until the leader's cycle, a later one than `after`, has charged so many, and is not done.

        Raises:
            ExpectationError: it is done already, or does not get so far.
        """

        def look() -> Cycle | None:
            cycle = self._books.cycle_of(self._term, newest=True)
            if cycle is None or (after and cycle.id <= after.id):
                return None
            self._teller.progress(f"{self._leader.name} bills: {cycle.instances:,} instances charged")
            if cycle.instances < instances:
                return None
            expect(
                cycle.outcome == "running", f"the cycle is caught in the middle; it is {cycle.outcome}", self._leader
            )
            return cycle

        return self._troupe.until(look, CYCLE_SECONDS, f"{self._leader.name} charges {instances:,} instances")
