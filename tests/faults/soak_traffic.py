"""The application during a soak.

Customers pay in. They order, move and delete instances, change their plans, and leave. Prices change, and plans are
added. Some top-ups write an absolute balance, as the application does. `shared` is held from a commit until the model
has it, so that no other thread deletes the organization meanwhile.
"""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, TypeVar
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from tests.faults.soak_model import (
    PAYMENTS,
    PERIODS,
    Acknowledged,
    History,
    Instance,
    Model,
    Payment,
    Period,
    TopUp,
)
from tests.faults.soak_session import Conn, Session
from tests.model import HOUR

PRICES: Final = tuple(map(Decimal, ("0.00", "0.01", "1.37", "3.65", "5.00", "7.30", "73.00", "240.00")))
PLANS: Final = 6
ORGANIZATIONS: Final = 24
#: Before the soak, billing last looked at the prices this long ago. Then they changed.
LOOKED_HOURS_AGO: Final = 80
PRICES_CHANGED_HOURS_AGO: Final = 20
#: The longest time between the application's reading of a balance and its writing, in seconds.
READ_TO_WRITE_SECONDS: Final = 0.3
#: Seconds between two actions of one thread.
PAUSE_SECONDS: Final = (0.01, 0.15)

T = TypeVar("T")


class Customers:
    """One thread of the application, with its own session."""

    def __init__(self, url: str, model: Model, seed: str, ends_at: datetime, shared: threading.RLock) -> None:
        self._session = Session(url)
        self._model = model
        self._chance = random.Random(seed)
        self._ends_at = ends_at
        self._shared = shared
        self._stop = threading.Event()
        self.error: BaseException | None = None

    def begin(self) -> None:
        """Makes plans, organizations and a backlog before the traffic starts."""
        self._session.execute("insert into users (email, password_hash) values ('owner@example.test', '!')")
        self._add_old_plans()
        for _ in range(ORGANIZATIONS):
            self.add_organization()
        for organization in list(self._model.opening):
            self.order(organization, self._chance.randint(1, 12))

    def run(self, stop: threading.Event) -> None:
        """Acts until `stop`. Keeps an unexpected error in `error`."""
        actions = {
            self.top_up: 20,
            self.write_balance: 10,
            self.top_up_debtor: 20,
            self.order_some: 25,
            self.delete: 12,
            self.move: 6,
            self.change_plan: 6,
            self.change_price: 10,
            self.add_plan: 2,
            self.add_organization: 5,
            self.delete_organization: 2,
        }
        self._stop = stop
        try:
            while not stop.wait(self._chance.uniform(*PAUSE_SECONDS)):
                (action,) = self._chance.choices(list(actions), list(actions.values()))
                action()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.error = error
        finally:
            self.close()

    def close(self) -> None:
        """Closes the session."""
        self._session.close()

    @property
    def looked_up(self) -> int:
        """The commits whose answer was lost."""
        return self._session.looked_up

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

        with self._shared:
            if done := self._session.commit(act, "select from organizations where id = %s", organization):
                held_at, _ = done
                self._model.opening[organization] = Decimal(0) if known else amount
                if known:
                    self._model.top_ups[payment] = TopUp(organization, amount, held_at)

    def top_up(self) -> None:
        """Pays into a wallet."""
        self._pay_in(self._chance.choice(self._model.open))

    def write_balance(self) -> None:
        """Pays into a wallet as the application does: reads the balance, and later writes an absolute one."""
        organization = self._chance.choice(self._model.open)
        read = self._session.query("select balance from wallets where organization_id = %s", organization)
        self._stop.wait(self._chance.uniform(0, READ_TO_WRITE_SECONDS))
        if read:
            self._pay_in(organization, before=read[0]["balance"])

    def top_up_debtor(self) -> None:
        """Pays into the wallet of an organization with debts, perhaps too little."""
        owing = self._session.query(
            "select organization_id as id from vps_billing_cycles where status = 'failed' group by 1 order by 1"
        )
        if owing:
            self._pay_in(self._chance.choice(owing)["id"])

    def order_some(self) -> None:
        """Orders instances for a random organization."""
        self.order(self._chance.choice(self._model.open), self._chance.randint(1, 5))

    def order(self, organization: UUID, count: int) -> None:
        """Orders instances. Each has owed hours for a while, and some owe another hour before the soak ends."""
        made = [self._draw_instance() for _ in range(count)]

        def act(conn: Conn) -> bool:
            with conn.cursor() as cursor:
                cursor.executemany(
                    "insert into vps_instances (id, organization_id, plan_id, label, created_at)"
                    " values (%s, %s, %s, 'vps', %s)",
                    [(each.id, organization, plan_id, each.created_at) for each, plan_id in made],
                )
            return True

        with self._shared:
            if done := self._session.commit(act, "select from vps_instances where id = %s", made[0][0].id):
                for each, plan_id in made:
                    self._model.instances[each.id] = replace(each, made=done[1])
                    each.plan_ids.values[:] = [(plan_id, done[1])]
                    each.organizations.values[:] = [(organization, done[1])]

    def delete(self) -> None:
        """Deletes an instance, and keeps its periods, which the deletion removes."""
        with self._shared:  # otherwise a lost answer couldn't tell which thread deleted it
            instance = self._chance.choice(self._model.live)

            def act(conn: Conn) -> list[Period]:
                conn.execute("select from vps_instances where id = %s for update", (instance.id,))
                rows = conn.execute(f"{PERIODS} where vps_instance_id = %s".encode(), (instance.id,)).fetchall()
                conn.execute("delete from vps_instances where id = %s", (instance.id,))
                return [Period.from_row(row) for row in rows]

            gone = "select where not exists (select from vps_instances where id = %s)"
            if done := self._session.commit(act, gone, instance.id):
                periods, instance.deleted = done
                self._model.taken_periods += periods

    def delete_organization(self) -> None:
        """Deletes an organization, and keeps its balance, payments and periods. Some periods are of moved instances."""
        with self._shared:
            organization = self._chance.choice(self._model.open)

            def act(conn: Conn) -> tuple[list[Period], list[Payment], Decimal]:
                conn.execute("select from organizations where id = %s for update", (organization,))
                (wallet,) = conn.execute(
                    "select balance from wallets where organization_id = %s for update", (organization,)
                ).fetchall()
                conn.execute("select from vps_instances where organization_id = %s for update", (organization,))
                periods = conn.execute(
                    f"{PERIODS} where organization_id = %s or vps_instance_id in"  # noqa: S608 - ours
                    " (select id from vps_instances where organization_id = %s)".encode(),
                    (organization, organization),
                ).fetchall()
                payments = conn.execute(f"{PAYMENTS} where organization_id = %s".encode(), (organization,)).fetchall()
                conn.execute("delete from organizations where id = %s", (organization,))
                return (
                    [Period.from_row(row) for row in periods],
                    [Payment(**row) for row in payments],
                    wallet["balance"],
                )

            gone = "select where not exists (select from organizations where id = %s)"
            if done := self._session.commit(act, gone, organization):
                (periods, payments, balance), self._model.closed[organization] = done
                self._model.taken_balances[organization] = balance
                self._model.taken_periods += periods
                self._model.taken_payments += payments
                for instance in self._model.live:
                    if instance.organizations.newest == organization:
                        instance.deleted = done[1]

    def move(self) -> None:
        """Moves an instance to another organization."""
        with self._shared:
            instance = self._chance.choice(self._model.live)
            target = self._chance.choice(self._model.open)
            self._change(instance, instance.organizations, "organization_id", target)

    def change_plan(self) -> None:
        """Changes the plan of an instance."""
        with self._shared:
            instance = self._chance.choice(self._model.live)
            self._change(instance, instance.plan_ids, "plan_id", self._chance.choice([*self._model.prices, "gone"]))

    def change_price(self) -> None:
        """Changes a plan's price."""
        with self._shared:  # one after the other, so that their order is known
            plan_id = self._chance.choice([key for key in self._model.prices if not key.startswith("p-")])
            prices = self._model.prices[plan_id]
            price = self._chance.choice([each for each in PRICES if each != prices.newest])

            def act(conn: Conn) -> bool:
                conn.execute("update vps_plans set base_price = %s - markup_price where id = %s", (price, plan_id))
                return True

            if done := self._session.commit(
                act, "select from vps_plans where base_price + markup_price = %s and id = %s", price, plan_id
            ):
                prices.values.append((price, done[1]))

    def add_plan(self) -> None:
        """Adds a plan, which instances may name before a cycle has recorded its price."""
        plan_id, provider, price = uuid4(), f"p-{uuid4()}", self._chance.choice(PRICES)

        def act(conn: Conn) -> bool:
            conn.execute(
                "insert into vps_plans (id, name, provider_plan_id, base_price) values (%s, 'Plan', %s, %s)",
                (plan_id, provider, price),
            )
            return True

        with self._shared:
            if done := self._session.commit(act, "select from vps_plans where id = %s", plan_id):
                self._model.prices[str(plan_id)] = self._model.prices[provider] = History([(price, done[1])])

    # --- helpers

    def _change(self, instance: Instance, history: History[T], column: str, value: T) -> None:
        """Changes a column of an instance. Call this with the shared lock."""
        if value == history.newest:
            return

        def act(conn: Conn) -> bool:
            update = f"update vps_instances set {column} = %s where id = %s"  # noqa: S608 - ours
            conn.execute(update.encode(), (value, instance.id))
            return True

        changed = f"select from vps_instances where {column} = %s and id = %s"
        if done := self._session.commit(act, changed, value, instance.id):
            history.values.append((value, done[1]))

    def _pay_in(self, organization: UUID, before: Decimal | None = None) -> None:
        """Adds to a wallet. `before` is a balance read earlier: then the new balance is written as an absolute one."""
        payment, amount = uuid4(), self._cents(1, self._chance.choice([60, 1_500]))
        absolute = None if before is None else before + amount

        def act(conn: Conn) -> datetime | None:
            written = conn.execute(
                "update wallets set balance = coalesce(%s, balance + %s) where organization_id = %s",
                (absolute, amount, organization),
            ).rowcount
            if not written:
                return None  # another thread has deleted the organization
            moment = _clock(conn)
            _record_payment(conn, payment, organization, amount, before)
            return moment

        with self._shared:
            if done := self._session.commit(act, "select from payment_transactions where id = %s", payment):
                self._model.top_ups[payment] = TopUp(organization, amount, done[0], absolute)

    def _draw_instance(self) -> tuple[Instance, str | None]:
        now = datetime.now(UTC)
        created_at = now - self._chance.randint(1, 72) * HOUR
        if self._chance.random() < 0.6:
            created_at += timedelta(seconds=self._chance.uniform(0, max((self._ends_at - now).total_seconds(), 1)))
        else:
            created_at -= timedelta(seconds=self._chance.uniform(0, 3600))
        plan_id = self._chance.choice([*self._model.prices, "gone", None])
        return Instance(uuid4(), History([]), History([]), created_at, Acknowledged(now, now)), plan_id

    def _add_old_plans(self) -> None:
        """Adds plans as if billing had recorded their prices long ago, and not looked since they changed."""
        now = datetime.now(UTC)
        looked_at, changed_at = now - LOOKED_HOURS_AGO * HOUR, now - PRICES_CHANGED_HOURS_AGO * HOUR
        conn = self._session.connection()
        with conn.transaction():
            # a cycle that looks meanwhile waits for this lock, and then sees everything
            conn.execute("lock table billing_price_check in exclusive mode")
            for number in range(PLANS):
                plan_id, provider, (old, new) = uuid4(), f"p-{number}", self._chance.sample(PRICES, 2)
                conn.execute(
                    "insert into vps_plans (id, name, provider_plan_id, base_price, updated_at)"
                    " values (%s, 'Plan', %s, %s, %s)",
                    (plan_id, provider, new, changed_at),
                )
                conn.execute(
                    "insert into billing_prices (key, valid_from, monthly_price, source, recorded_at)"
                    " values (%s, '-infinity', %s, 'plan', %s), (%s, '-infinity', %s, 'provider_plan', %s)",
                    (str(plan_id), old, looked_at, provider, old, looked_at),
                )
                prices = History(
                    [(old, Acknowledged(looked_at, looked_at)), (new, Acknowledged(changed_at, changed_at))]
                )
                self._model.prices[str(plan_id)] = self._model.prices[provider] = prices
            conn.execute(
                "insert into billing_price_check (checked_at) values (%s)"
                " on conflict (only_row) do update set checked_at = excluded.checked_at",
                (looked_at,),
            )

    def _cents(self, low: int, high: int) -> Decimal:
        return Decimal(self._chance.randint(low, high)).scaleb(-2)


def _record_payment(
    conn: Conn, payment: UUID, organization: UUID, amount: Decimal, before: Decimal | None = None
) -> None:
    """Writes a completed payment, with the balances before and after it if the application knows them."""
    balances = {} if before is None else {"balance_before": str(before), "balance_after": str(before + amount)}
    conn.execute(
        "insert into payment_transactions (id, organization_id, amount, status, payment_method, metadata)"
        " values (%s, %s, %s, 'completed', 'card', %s)",
        (payment, organization, amount, Jsonb(balances)),
    )


def _clock(conn: Conn) -> datetime:
    """The server's time, while the transaction holds its locks."""
    row = conn.execute("select clock_timestamp() as now").fetchone()
    assert row is not None
    moment: datetime = row["now"]
    return moment
