"""Minutes of random faults under traffic. At the end the model, the wallets and the audit agree to the cent.

`FAULT_MINUTES` sets the length (5). `FAULT_SEED` repeats a sequence of faults; a failure prints seed and sequence.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from controller.billing.audit import audit
from controller.demo.server import Installation
from tests.faults.proxy import Proxy
from tests.faults.soak_faults import Faults
from tests.faults.soak_ledger import Ledger
from tests.faults.soak_model import Model
from tests.faults.soak_slots import SESSIONS, Slot
from tests.faults.soak_traffic import Customers
from tests.faults.soak_verdict import LeftOut, Verdict
from tests.support.processes import terminate
from tests.support.servers import Server, prepare_template
from tests.support.waiting import eventually, through

MINUTES: Final = float(os.environ.get("FAULT_MINUTES") or 5)
THREADS: Final = 2
#: The soak in `make test`. It shows early that the model and the controller have diverged.
SHORT_SECONDS: Final = 10.0
#: A leader that can't work steps down for a minute, and every replica may have done so.
RECOVERY_SECONDS: Final = 150.0
SHOWN: Final = 30
#: Changes to the rows of a billed database, and what the verdict must report.
PLANTED: Final[Mapping[str, LiteralString]] = {
    "should hold": "update wallets set balance = balance + 0.01 where balance > 0",
    "its periods end at": "update vps_instances set last_billed_at = last_billed_at - interval '1 hour'",
    "instances are not the acknowledged ones": "delete from vps_instances where last_billed_at is not null",
    "has no period": """
        insert into payment_transactions (organization_id, amount, status, metadata)
        select organization_id, amount, status, metadata from payment_transactions where metadata ? 'controller' limit 1
    """,
    "its open rows end at": "delete from vps_billing_cycles where status = 'failed'",
    "no price that it had": "update billing_prices set monthly_price = 11",
    "should cost": "update billing_prices set monthly_price = 11 where valid_from = '-infinity'",
    "last billed at": "delete from vps_billing_cycles where status = 'billed'",
    "belongs to no batch": "update vps_billing_cycles set total_amount = 1 where status = 'billed'",
    "was paid by": "update payment_transactions set amount = amount - 0.01 where metadata ? 'controller'",
    "its batches": "update billing_runs set hours = hours + 1",
    "the newest record is": "delete from billing_prices where valid_from > '-infinity'",
    "could pay the hour": "update wallets set balance = balance + 1000",
    "has the reason": """
        update vps_billing_cycles set metadata = metadata || '{"reason": "locked"}' where status = 'failed'
    """,
    "has the baseline": "update billing_wallet_baselines set baseline = baseline + 1",
    "hours and": "update billing_runs set amount = amount + 1",
    "the next term began at": """
        insert into billing_terms (term, holder, minted_at, generation)
        select max(b.term) + 1, 'too early', min(b.written_at), max(l.generation)
        from billing_batches b, billing_leadership l
    """,
    "beyond its run's": "update billing_runs set started_at = started_at - interval '1 year'",
}


@pytest.fixture
def soak_server(fault_installation: Installation) -> Iterator[Server]:
    """A server for this test, which restarts it. It records commit timestamps."""
    with Server(fault_installation, {"track_commit_timestamp": "on"}) as running:
        yield running


@pytest.fixture
def soak_database(soak_server: Server) -> str:
    url = soak_server.create_database("soak")
    prepare_template(url)
    return url


@pytest.fixture
def slots(soak_server: Server, soak_database: str) -> Iterator[list[Slot]]:
    made: list[Slot] = []
    try:
        made.extend(Slot(soak_database, soak_server.port, each) for each in SESSIONS)
        yield made
    finally:
        for slot in made:
            slot.remove()


@pytest.fixture
def front_door(soak_server: Server) -> Iterator[Proxy]:
    """The proxy that customers use."""
    with Proxy(("127.0.0.1", soak_server.port)) as running:
        yield running


@dataclass(frozen=True)
class Outcome:
    """What a soak found, and what happened in it, by name."""

    defects: list[str]
    figures: Mapping[str, object]


@pytest.fixture
def soak(
    soak_server: Server, soak_database: str, slots: list[Slot], front_door: Proxy, seed: int
) -> Callable[[float], Outcome]:
    """Runs a soak for a number of seconds."""

    def run(seconds: float) -> Outcome:
        began, ends_at = time.monotonic(), datetime.now(UTC) + timedelta(seconds=seconds)
        model, shared, stop = Model(), threading.RLock(), threading.Event()
        url = through(soak_database, front_door.port)
        customers = [Customers(url, model, f"{seed}-{n}", ends_at, shared) for n in range(THREADS)]
        customers[0].begin()
        faults = Faults(soak_server, soak_database, slots, front_door, seed)
        threads = [threading.Thread(target=each.run, args=(stop,), name="customers") for each in customers]
        threads.append(threading.Thread(target=faults.run, name="faults"))
        for thread in threads:
            thread.start()
        try:
            stop.wait(seconds)
        finally:
            faults.stop()
            stop.set()
            for thread in threads:
                thread.join()
        print(*faults.drawn, sep="\n")  # noqa: T201 - pytest shows it with a failure
        assert [each.error for each in customers] == [None] * THREADS
        _bill_what_is_left(soak_database, slots)
        with psycopg.connect(soak_database, row_factory=dict_row, autocommit=True) as conn:
            verdict = Verdict(model, Ledger.read(conn), _left_out(slots))
            defects = [*faults.errors, *_crashes(slots), *verdict.defects(), *_audited(conn, verdict.differences)]
        figures = {"seed": seed, "seconds": round(time.monotonic() - began), **_figures(verdict, faults, slots)}
        figures["commits whose answer was lost"] = sum(each.looked_up for each in customers)
        return Outcome(defects, figures)

    return run


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + 400)
def test_soak_ends_with_model_wallets_and_audit_in_agreement(
    soak: Callable[[float], Outcome], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = soak(_share_of_the_time(request))
    with capsys.disabled():
        print(*(f"\nsoak: {name}: {value}" for name, value in outcome.figures.items()), sep="", end=" ")  # noqa: T201 - to be seen
    _require_none(outcome.defects)


@pytest.mark.timeout(SHORT_SECONDS + 400)
def test_short_soak_ends_with_model_wallets_and_audit_in_agreement(soak: Callable[[float], Outcome]) -> None:
    _require_none(soak(SHORT_SECONDS).defects)


def test_soak_would_find_what_is_planted(soak_database: str, slots: list[Slot]) -> None:
    model = Model()
    with closing(Customers(soak_database, model, "planted", datetime.now(UTC), threading.RLock())) as customers:
        customers.begin()
    _bill_what_is_left(soak_database, slots)
    with psycopg.connect(soak_database, row_factory=dict_row) as conn:
        assert Verdict(model, Ledger.read(conn), []).defects() == []
        for sentence, statement in PLANTED.items():
            assert conn.execute(statement).rowcount >= 1, statement
            defects = Verdict(model, Ledger.read(conn), []).defects()
            assert any(sentence in each for each in defects), (statement, defects)
            conn.rollback()
        verdict = Verdict(model, Ledger.read(conn), [])
    for change, sentence in ((-10_000, "a wallet fell to"), (10_000, "skipped the hour")):
        model.opening = {organization: balance + change for organization, balance in model.opening.items()}
        assert sentence in "\n".join(Verdict(model, verdict.ledger, []).defects())
        model.opening = {organization: balance - change for organization, balance in model.opening.items()}
    late = [replace(each, valid_from=each.valid_from and each.recorded_at) for each in verdict.ledger.prices]
    assert "is no price that it had" in "\n".join(Verdict(model, replace(verdict.ledger, prices=late), []).defects())
    period = verdict.billed[0]
    other = next(each for each in model.open if each != period.organization)
    model.instances[period.instance].organizations.values[:] = [(other, model.instances[period.instance].made)]
    assert f"was charged to {period.organization}" in "\n".join(verdict.defects())


def _require_none(defects: list[str]) -> None:
    print(*defects[:SHOWN], sep="\n")  # noqa: T201 - pytest shows it with a failure
    assert not defects, f"{len(defects)} defects"


def _share_of_the_time(request: pytest.FixtureRequest) -> float:
    """Seconds per server: the servers of this run share the minutes."""
    runs = [each for each in request.session.items if getattr(each, "originalname", "") == request.node.originalname]
    return MINUTES * 60 / len(runs)


def _bill_what_is_left(url: str, slots: list[Slot]) -> None:
    """Bills with a healthy pair until two new cycles skip no organization; then stops the pair."""
    *pair, spare = [slot.replica for slot in slots]
    spare.wait_for("controller.started")
    assert terminate(spare) == 0, spare.tail()
    since = datetime.now(UTC)
    # the first may have looked at the prices before the last change
    whole = (
        "select from billing_runs where kind = 'cycle' and outcome = 'completed' and failures = 0 and started_at > %s"
    )
    with psycopg.connect(url, autocommit=True) as conn:
        try:
            eventually(lambda: conn.execute(whole, [since]).rowcount >= 2, "two whole cycles", RECOVERY_SECONDS)
        except AssertionError:
            print(*(replica.tail() for replica in pair), sep="\n\n")  # noqa: T201 - as above
            raise
    assert [terminate(replica) for replica in pair] == [0, 0], [replica.tail() for replica in pair]


def _left_out(slots: list[Slot]) -> list[LeftOut]:
    """The organizations that a cycle logged as skipped."""
    failed = [line for slot in slots for replica in slot.replicas for line in replica.events("organization.failed")]
    return [LeftOut(UUID(line["organization"]), datetime.fromisoformat(line["time"])) for line in failed]


def _crashes(slots: list[Slot]) -> list[str]:
    """Log lines that no replica may write, output outside the log, and failures for other reasons than locks."""
    replicas = [replica for slot in slots for replica in slot.replicas]
    said = [line for each in replicas for line in each.events("service.crashed", "organization.failed")]
    crashes = [f"{line.event} {line.fields}" for line in said if line.fields.get("reason") != "locked"]
    return crashes + [f"{each.instance}: {line}" for each in replicas for line in each.other_output]


def _audited(conn: psycopg.Connection[dict[str, Any]], differences: Mapping[UUID, Decimal]) -> list[str]:
    """The violations that the controller's audit finds, and wallets whose difference it overlooks."""
    findings = {each.invariant: each for each in audit(conn).findings}
    broken = [f"audit: {each.invariant}: {each.examples}" for each in findings.values() if each.violations]
    found = findings["wallet_balance"].exempt
    if found != len(differences):
        broken.append(f"audit: {found} wallets differ from their transactions, should be {len(differences)}")
    for organization, difference in differences.items():
        compared = conn.execute("select difference from billing_wallet_comparison(%s)", [organization]).fetchall()
        if [row["difference"] for row in compared] != [difference]:
            broken.append(f"the wallet of {organization} differs by {compared}, should by {difference}")
    return broken


def _figures(verdict: Verdict, faults: Faults, slots: list[Slot]) -> dict[str, object]:
    model, ledger, billed = verdict.model, verdict.ledger, verdict.billed
    replicas = [replica for slot in slots for replica in slot.replicas]
    said = Counter(line.event for replica in replicas for line in replica.events())
    moved = [len(each.organizations.values) - 1 for each in model.instances.values()]
    rebooked = [len(each.plan_ids.values) - 1 for each in model.instances.values()]
    plans = {id(each): each for each in model.prices.values()}.values()
    return {
        "faults": f"{len(faults.drawn)}: {_counted(faults.counts)}",
        "cycles": _counted(Counter(run.outcome for run in ledger.runs.values())),
        "batches": len(ledger.batches),
        "seconds without a batch": f"at most {_longest_pause(ledger):.1f}",
        "terms": len(ledger.minted_at),
        "replicas": len(replicas),
        "organizations": f"{len(model.opening)}, {len(model.closed)} of them deleted",
        "instances": f"{len(model.instances)}, {len(model.instances) - len(model.live)} of them deleted,"
        f" {sum(moved)} moves, {sum(rebooked)} changes of plan",
        "periods": f"{len(billed)}, {sum(each.hours for each in billed)} hours, {sum(each.amount for each in billed)}",
        "top-ups": f"{len(model.top_ups)}, {sum(each.balance is not None for each in model.top_ups.values())} of them"
        f" wrote an absolute balance; {len(verdict.differences)} wallets differ from their transactions",
        "prices": f"{sum(len(each.values) for each in plans)} of {len(plans)} plans",
        "organizations left out of a cycle": len(verdict.left_out),
        "said": _counted(said),
    }


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def _longest_pause(ledger: Ledger) -> float:
    """The longest time between two batches, in seconds. There was always something to charge."""
    moments = sorted(batch.written_at for batch in ledger.batches.values())
    return max((later - earlier).total_seconds() for earlier, later in pairwise(moments))
