"""The executable model of election, fence, handover and eviction: the steps of three replicas, and the invariants.

The replicas take steps in any order, pause between them, lose sessions, die, and evict each other. After every step
these invariants hold: no batch commits under a term that is not the newest, each unit of work is charged once, terms
only grow, at most one session holds the lock, and no replica is evicted while it may still believe that it leads.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from psycopg.rows import dict_row

from controller import sql
from controller.election import Silence
from tests.integration.leadership_actor import LOCK, Actor, Clock, facts

#: The name of a step, and the index of the replica that it affects.
Step = tuple[str, int]
NO_REPLICA: Final = -1

SCHEMA: Final = b"create table model_charges (example int, unit int, term bigint)"
NOW: Final = b"""
select (select term from billing_leadership) as newest,
    (select coalesce(json_agg(json_build_array(unit, term) order by unit), '[]') from model_charges
        where example = %(example)s) as charges,
    (select count(*) from pg_locks where locktype = 'advisory' and granted and objsubid = 1
        and classid = %(lock_high)s::bigint::oid and objid = %(lock_low)s::bigint::oid) as holders
"""
GONE: Final = b"select not exists (select from pg_stat_activity where pid = any (%s)) as gone"


class History(RuleBasedStateMachine):
    """A history of steps of three replicas. The invariants are checked after each step."""

    url: ClassVar[str]
    statements: ClassVar[Mapping[str, str]] = sql.load()
    silence: ClassVar[type[Silence]] = Silence
    #: Shared by all examples. They hold no state that a history could depend on.
    clock: ClassVar[Clock]
    conn: ClassVar[psycopg.Connection[dict[str, Any]]]
    actors: ClassVar[list[Actor]]
    examples: ClassVar[itertools.count[int]]
    #: The steps of the newest history, and the same steps in words.
    taken: ClassVar[list[Step]]
    said: ClassVar[list[str]]

    @classmethod
    def set_up(cls, url: str) -> None:
        """Prepares a database. Call it once."""
        cls.url, cls.clock, cls.examples = url, Clock(), itertools.count(1)
        cls.conn = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        cls.conn.execute(SCHEMA)
        cls.actors = [Actor(name, url, cls.clock, cls.statements, cls.silence) for name in ("a", "b", "c")]

    @classmethod
    def tear_down(cls) -> None:
        """Closes every session."""
        for actor in cls.actors:
            actor.close()
        cls.conn.close()

    @initialize()
    def begin_history(self) -> None:
        cls = type(self)
        cls.taken, cls.said, self.example = [], [], next(self.examples)
        self.clock.now = 0.0
        self.newest = self.base = self._now()["newest"]
        self.charged: list[list[int]] = []

    def teardown(self) -> None:
        """Frees the lock for the next example."""
        for actor in self.actors:
            actor.rest()
            self._until_gone(actor)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Takes any possible step. Steps that make progress are drawn more often than faults."""
        name, who, _ = data.draw(st.sampled_from([each for each in self._possible() for _ in range(each[2])]))
        self.take(name, who)

    def take(self, name: str, who: int) -> None:
        """Takes the step with this name on this replica."""
        self.taken.append((name, who))
        actor = self.actors[who]
        getattr(self, name)(actor)
        self._until_gone(actor)

    def _possible(self) -> list[tuple[str, int, int]]:
        """Returns the possible steps and faults: name, index of the replica, and weight in the draw."""
        return [
            (name, who, weight)
            for who, actor in enumerate(self.actors)
            for name, possible, weight in self._steps_of(actor)
            if possible
        ] + [("a_moment_passes", NO_REPLICA, 4), ("a_deadline_passes", NO_REPLICA, 4)]

    def _steps_of(self, actor: Actor) -> list[tuple[str, object, int]]:
        awake, at_work = not actor.frozen, actor.in_batch
        lock_is_free = all(each.took_lock_at is None for each in self.actors)
        return [
            ("contend", actor.contends, 6 if lock_is_free else 3),
            ("mint", actor.wins, 6),
            ("begin", actor.leads and not at_work, 6),
            ("write", awake and at_work and actor.unit is None, 6),
            ("commit", awake and at_work, 3),
            ("ping", actor.leads, 4),
            ("evict", actor.contends and actor.session and actor.silence.expired_holder, 12),
            ("resign", actor.leads and not at_work, 1),
            ("server_ends_lock_session", actor.took_lock_at is not None, 6 if at_work else 2),
            ("server_ends_transaction", at_work, 1),
            ("freeze", awake and actor.took_lock_at is not None, 1),
            ("thaw", actor.frozen, 2),
            ("die", actor.session, 1),
            ("die_after_its_commit", at_work, 1),
        ]

    def contend(self, actor: Actor) -> None:
        taken = actor.contend()
        self._say(f"{actor} takes the lock" if taken else f"{actor} tries the lock")

    def mint(self, actor: Actor) -> None:
        lost = self._gone(actor.lock_pid)
        in_the_way = [other for other in self.actors if other.in_batch and not self._gone(other.worker_pid)]
        term = actor.mint()
        if term is None:
            self._say(f"{actor} can't mint, and starts again")
            assert lost or in_the_way, "a mint failed although its session lives and no batch blocks it"
        else:
            self._say(f"{actor} mints term {term - self.base}")
            assert term > self.newest, "terms only grow"
            self.newest = term

    def begin(self, actor: Actor) -> None:
        let_in = actor.begin()
        self._say(f"{actor} begins a batch" if let_in else f"{actor} begins a batch, and the fence refuses it")
        assert let_in or actor.term < self.newest, "the fence refused the newest term"

    def write(self, actor: Actor) -> None:
        unit = actor.write(self.example)
        self._say(f"{actor} charges unit {unit}" if unit else f"{actor} finds its transaction ended")

    def commit(self, actor: Actor) -> None:
        unit, term = actor.unit, actor.term
        done = actor.commit()
        self._say(f"{actor} commits" if done else f"{actor} can't commit")
        if done and unit is not None:
            self.charged.append([unit, term])
            assert term == self.newest, (
                f"committed under term {term - self.base}; the newest is {self.newest - self.base}"
            )

    def ping(self, actor: Actor) -> None:
        self._say(f"{actor} pings" if actor.ping() else f"{actor} pings and finds itself deposed")

    def evict(self, actor: Actor) -> None:
        holder = actor.silence.expired_holder
        assert holder is not None
        assert actor.session is not None
        actor.silence.observe(None)
        if not actor.session.evict(holder):
            self._say(f"{actor} is too late to evict {holder.instance}")
            return
        self._say(f"{actor} evicts {holder.instance}")
        actor.ending.append(holder.pid)
        (evicted,) = [each for each in self.actors if each.name == holder.instance]
        assert evicted.leadership is None or not evicted.leadership.still_leads(), (
            f"{evicted} was evicted while it could still believe that it leads"
        )

    def resign(self, actor: Actor) -> None:
        actor.resign()
        self._say(f"{actor} resigns")

    def server_ends_lock_session(self, actor: Actor) -> None:
        self._terminate(actor, actor.lock_pid)
        self._say(f"the server ends the lock session of {actor}")

    def server_ends_transaction(self, actor: Actor) -> None:
        self._terminate(actor, actor.worker_pid)
        self._say(f"the server ends the transaction of {actor}")

    def freeze(self, actor: Actor) -> None:
        actor.frozen = True
        self._say(f"{actor} freezes")

    def thaw(self, actor: Actor) -> None:
        actor.frozen = False
        self._say(f"{actor} thaws")

    def die(self, actor: Actor) -> None:
        actor.die()
        self._say(f"{actor} dies")

    def die_after_its_commit(self, actor: Actor) -> None:
        """Dies after it has sent its commit, which the server still carries out."""
        self.commit(actor)
        self.die(actor)

    def a_moment_passes(self, _actor: Actor) -> None:
        self.clock.now += 2
        self._say("2 s pass")

    def a_deadline_passes(self, _actor: Actor) -> None:
        self.clock.now += 7
        self._say("7 s pass")

    # --- invariants

    @invariant()
    def terms_grow_units_are_charged_once_and_one_holds_the_lock(self) -> None:
        now = self._now()
        assert now["newest"] == self.newest, "the newest term is not the last one that was minted"
        assert now["charges"] == self.charged, "the charges are not those that were committed"
        units = [unit for unit, _ in self.charged]
        assert units == sorted(set(units)), f"a unit was charged twice: {units}"
        assert now["holders"] <= 1

    def _say(self, step: str) -> None:
        self.said.append(step)

    def _now(self) -> Mapping[str, Any]:
        parameters = {"example": self.example, **LOCK.catalog_key}
        return facts(self.conn.execute(NOW, parameters).fetchone())

    def _terminate(self, actor: Actor, pid: int | None) -> None:
        assert pid is not None
        self.conn.execute("select pg_terminate_backend(%s)", [pid])
        actor.ending.append(pid)

    def _gone(self, *pids: int | None) -> bool:
        return bool(facts(self.conn.execute(GONE, [list(pids)]).fetchone())["gone"])

    def _until_gone(self, actor: Actor) -> None:
        """Waits until the backends have ended. The server frees a lock only then, a moment after it is told to."""
        deadline = time.monotonic() + 10
        while actor.ending and not self._gone(*actor.ending):
            assert time.monotonic() < deadline, f"backends {actor.ending} did not end within 10 s"
        actor.ending.clear()


@contextmanager
def histories(url: str, **parts: Any) -> Iterator[type[History]]:  # noqa: ANN401 - attributes of the machine
    """Yields a model on this database, with some attributes replaced."""

    class Here(History):
        pass

    for name, part in parts.items():
        setattr(Here, name, part)
    Here.set_up(url)
    try:
        yield Here
    finally:
        Here.tear_down()


def breaks_invariant(here: type[History], steps: list[Step]) -> bool:
    """Returns True if these steps break an invariant. Skips steps that are impossible."""
    history = here()
    history.begin_history()
    try:
        for name, who in steps:
            if any(each[:2] == (name, who) for each in history._possible()):
                history.take(name, who)
                history.terms_grow_units_are_charged_once_and_one_holds_the_lock()
    except AssertionError:
        return True
    finally:
        history.teardown()
    return False


def shortest(here: type[History]) -> list[str]:
    """Returns the newest history in words, without the steps that it can fail without. The first replica is called a.

    Hypothesis could shrink it too, but would need ten times as many tries.
    """
    steps, before = here.taken, None
    while steps != before:
        before = steps
        for place in reversed(range(len(steps))):
            if breaks_invariant(here, fewer := steps[:place] + steps[place + 1 :]):
                steps = fewer
    order = dict(zip(dict.fromkeys(who for _, who in steps if who != NO_REPLICA), itertools.count(), strict=False))
    assert breaks_invariant(here, [(name, order.get(who, NO_REPLICA)) for name, who in steps])
    return here.said
