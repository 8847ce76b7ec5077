"""The application during a soak: customers pay in, order and delete instances, and prices change.

If a commit's answer is lost with its connection, it looks whether the commit happened, as a real application would.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

from tests.faults.soak_model import PERIODS, Acknowledged, Instance, Model, Period, Plan, TopUp, no_plan
from tests.model import HOUR
from tests.support.waiting import eventually

PRICES: Final = tuple(map(Decimal, ("0.00", "0.01", "1.37", "3.65", "5.00", "7.30", "73.00", "240.00")))
PLANS: Final = 6
ORGANIZATIONS: Final = 24
#: Seconds between two actions of one thread.
PAUSE_SECONDS: Final = (0.01, 0.15)
SERVER_BACK_SECONDS: Final = 60.0
_OPTIONS: Final = "-c lock_timeout=1s -c statement_timeout=10s"

T = TypeVar("T")
Conn = psycopg.Connection[dict[str, Any]]


class Customers:
    """One thread of the application, with its own session."""

    def __init__(self, url: str, model: Model, seed: str, ends_at: datetime, shared: threading.RLock) -> None:
        self._url = url
        self._model = model
        self._chance = random.Random(seed)
        self._ends_at = ends_at
        self._shared = shared
        self._conn: Conn | None = None
        self._backend_pid = 0
        self.error: BaseException | None = None

    def begin(self) -> None:
        """Makes plans, organizations and a backlog before the traffic starts."""
        self._execute("insert into users (email, password_hash) values ('owner@example.test', '!')")
        for number in range(PLANS):
            self._add_plan(number)
        for _ in range(ORGANIZATIONS):
            self.add_organization()
        for organization in list(self._model.opening):
            self.order(organization, self._chance.randint(1, 12))

    def run(self, stop: threading.Event) -> None:
        """Acts until `stop`. Keeps an unexpected error in `error`."""
        actions = (
            self.top_up,
            self.top_up_debtor,
            self.order_some,
            self.delete,
            self.change_price,
            self.add_organization,
        )
        try:
            while not stop.wait(self._chance.uniform(*PAUSE_SECONDS)):
                (action,) = self._chance.choices(actions, (25, 20, 25, 14, 12, 4))
                action()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.error = error
        finally:
            self.close()

    def close(self) -> None:
        """Closes the session."""
        if self._conn is not None:
            self._conn.close()

    # --- actions

    def add_organization(self) -> None:
        """Adds an organization. Half start short of money; half have a balance without a transaction."""
        organization, payment = uuid4(), uuid4()
        amount = self._cents(0, 150) if self._chance.random() < 0.5 else self._cents(2_000, 50_000)
        known = self._chance.random() < 0.5

        def act(conn: Conn) -> datetime:
            conn.execute(
                "insert into organizations (id, name, slug, owner_id) select %s, 'Org', %s, id from users limit 1",
                (organization, str(organization)),
            )
            conn.execute("insert into wallets (organization_id, balance) values (%s, %s)", (organization, amount))
            if known:
                _record_payment(conn, payment, organization, amount)
            return _clock(conn)

        if done := self._commit(act, "select from organizations where id = %s", organization):
            held_at, _ = done
            with self._shared:
                self._model.opening[organization] = Decimal(0) if known else amount
                if known:
                    self._model.top_ups[payment] = TopUp(organization, amount, held_at)

    def top_up(self) -> None:
        """Pays into a wallet."""
        self._pay_in(self._chance.choice(list(self._model.opening)))

    def top_up_debtor(self) -> None:
        """Pays into a wallet that owes, perhaps too little."""
        owing = self._query(
            "select organization_id as id from vps_billing_cycles where status = 'failed' group by 1 order by 1"
        )
        if owing:
            self._pay_in(self._chance.choice(owing)["id"])

    def order_some(self) -> None:
        """Orders instances."""
        self.order(self._chance.choice(list(self._model.opening)), self._chance.randint(1, 5))

    def order(self, organization: UUID, count: int) -> None:
        """Orders an instance. Some were made hours ago, and some owe another hour before the soak ends."""
        made = [self._draw_instance(organization) for _ in range(count)]

        def act(conn: Conn) -> bool:
            with conn.cursor() as cursor:
                cursor.executemany(
                    "insert into vps_instances (id, organization_id, plan_id, label, created_at)"
                    " values (%s, %s, %s, 'vps', %s)",
                    [(each.id, each.organization, plan_id, each.created_at) for each, plan_id in made],
                )
            return True

        if done := self._commit(act, "select from vps_instances where id = %s", made[0][0].id):
            with self._shared:
                self._model.instances |= {each.id: replace(each, made=done[1]) for each, _ in made}

    def delete(self) -> None:
        """Deletes an instance, and keeps its periods, which the deletion removes."""
        with self._shared:  # two threads must not delete the same instance: a look couldn't tell which of them did
            instance = self._chance.choice(self._model.live)

            def act(conn: Conn) -> list[Period]:
                conn.execute("select from vps_instances where id = %s for update", (instance.id,))
                rows = conn.execute(f"{PERIODS} where vps_instance_id = %s".encode(), (instance.id,)).fetchall()
                conn.execute("delete from vps_instances where id = %s", (instance.id,))
                return [Period.from_row(row) for row in rows]

            gone = "select where not exists (select from vps_instances where id = %s)"
            if done := self._commit(act, gone, instance.id):
                instance.archive, instance.deleted = done

    def change_price(self) -> None:
        """Changes a plan's price."""
        with self._shared:  # one after the other, so that their order is known
            plan_id = self._chance.choice([key for key in self._model.plans if not key.startswith("p-")])
            plan = self._model.plans[plan_id]
            price = self._chance.choice([each for each in PRICES if each != plan.price])

            def act(conn: Conn) -> bool:
                conn.execute("update vps_plans set base_price = %s - markup_price where id = %s", (price, plan_id))
                return True

            if done := self._commit(
                act, "select from vps_plans where base_price + markup_price = %s and id = %s", price, plan_id
            ):
                plan.prices.append((price, done[1]))

    # --- helpers

    def _pay_in(self, organization: UUID) -> None:
        payment, amount = uuid4(), self._cents(1, self._chance.choice([60, 1_500]))

        def act(conn: Conn) -> datetime:
            _record_payment(conn, payment, organization, amount)
            conn.execute("update wallets set balance = balance + %s where organization_id = %s", (amount, organization))
            return _clock(conn)

        if done := self._commit(act, "select from payment_transactions where id = %s", payment):
            with self._shared:
                self._model.top_ups[payment] = TopUp(organization, amount, done[0])

    def _draw_instance(self, organization: UUID) -> tuple[Instance, str | None]:
        now = datetime.now(UTC)
        created_at = now - self._chance.randint(1, 72) * HOUR
        if self._chance.random() < 0.6:
            created_at += timedelta(seconds=self._chance.uniform(0, max((self._ends_at - now).total_seconds(), 1)))
        else:
            created_at -= timedelta(seconds=self._chance.uniform(0, 3600))
        plan_id = self._chance.choice([*self._model.plans, "gone", None])
        plan = self._model.plans.get(plan_id or "") or no_plan(created_at)
        return Instance(uuid4(), organization, plan, created_at, Acknowledged(now, now)), plan_id

    def _add_plan(self, number: int) -> None:
        plan_id, provider, price, markup = uuid4(), f"p-{number}", self._chance.choice(PRICES), Decimal("0.25")

        def act(conn: Conn) -> bool:
            conn.execute(
                "insert into vps_plans (id, name, provider_plan_id, base_price, markup_price)"
                " values (%s, 'Plan', %s, %s, %s)",
                (plan_id, provider, price - markup, markup),
            )
            return True

        if done := self._commit(act, "select from vps_plans where id = %s", plan_id):
            self._model.plans[str(plan_id)] = self._model.plans[provider] = Plan([(price, done[1])])

    def _cents(self, low: int, high: int) -> Decimal:
        return Decimal(self._chance.randint(low, high)).scaleb(-2)

    def _commit(
        self, act: Callable[[Conn], T | None], happened: str, *parameters: object
    ) -> tuple[T, Acknowledged] | None:
        """Runs one transaction; None if it did not happen. `happened` finds a row if it did."""
        asked_at = datetime.now(UTC)
        result: T | None = None
        try:
            conn = self._connection()
            with conn.transaction():
                result = act(conn)
        except psycopg.Error:
            if result is None:
                return None  # refused, or lost before the commit
            self._model.looked_up += 1
            if not self._looked_up(happened, parameters):
                return None
        return None if result is None else (result, Acknowledged(asked_at, datetime.now(UTC)))

    def _looked_up(self, question: str, parameters: Sequence[object]) -> bool:
        """Looks once the lost session has ended. Until then its commit may still arrive."""
        lost = self._backend_pid
        found: list[bool] = []

        def answered() -> bool:
            try:
                conn = self._connection()
                if conn.execute("select from pg_stat_activity where pid = %s", (lost,)).fetchone() is None:
                    found.append(conn.execute(question.encode(), parameters).fetchone() is not None)
            except psycopg.Error:
                return False
            return bool(found)

        self.close()
        eventually(answered, "the server is back", SERVER_BACK_SECONDS)
        return found[-1]

    def _query(self, query: str) -> list[dict[str, Any]]:
        try:
            return self._connection().execute(query.encode()).fetchall()
        except psycopg.Error:
            return []

    def _execute(self, statement: str) -> None:
        self._connection().execute(statement.encode())

    def _connection(self) -> Conn:
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(
                self._url,
                autocommit=True,
                row_factory=dict_row,
                connect_timeout=5,
                options=_OPTIONS,
                application_name="customers",
            )
            self._backend_pid = self._conn.info.backend_pid
        return self._conn


def _record_payment(conn: Conn, payment: UUID, organization: UUID, amount: Decimal) -> None:
    conn.execute(
        "insert into payment_transactions (id, organization_id, amount, status, payment_method)"
        " values (%s, %s, %s, 'completed', 'card')",
        (payment, organization, amount),
    )


def _clock(conn: Conn) -> datetime:
    """The server's time, while the transaction holds its locks."""
    row = conn.execute("select clock_timestamp() as now").fetchone()
    assert row is not None
    moment: datetime = row["now"]
    return moment
