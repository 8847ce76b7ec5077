"""The database is read at most once at a time and once an interval, and nobody waits for it for long."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from controller.billing.status import Status
from controller.errors import DatabaseUnreachableError
from controller.web.status_cache import FRESH_SECONDS, MAX_WAITING, STALE_SECONDS, Snapshot, StatusCache

STATUS = cast(Status, object())
PATIENCE_SECONDS = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Database:
    """Answers when it is let, and counts."""

    def __init__(self, *, open_at_once: bool = True) -> None:
        self.asked = threading.Semaphore(0)
        self.answer = threading.Event()
        self.reads = 0
        self.error: Exception | None = None
        self.runs: list[dict[str, Any]] = []
        if open_at_once:
            self.answer.set()

    def read(self) -> tuple[Status, Sequence[Mapping[str, Any]]]:
        self.reads += 1
        self.asked.release()
        assert self.answer.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error
        return STATUS, self.runs


def in_threads(count: int, reader: StatusCache) -> tuple[list[threading.Thread], list[Snapshot]]:
    got: list[Snapshot] = []
    threads = [threading.Thread(target=lambda: got.append(reader.get())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, got


def test_nobody_asks_nothing_is_read() -> None:
    database = Database()
    StatusCache(database.read, Clock())
    assert database.reads == 0


def test_many_who_ask_within_the_interval_cost_one_reading() -> None:
    database, clock = Database(), Clock()
    reader = StatusCache(database.read, clock)
    for _ in range(100):
        assert reader.get().status is STATUS
    assert database.reads == 1
    clock.now += FRESH_SECONDS
    reader.get()
    assert database.reads == 2


def test_failure_is_kept_as_long_as_a_success() -> None:
    database, clock = Database(), Clock()
    database.error = DatabaseUnreachableError("can't connect:\n refused")
    reader = StatusCache(database.read, clock)
    assert [reader.get().error for _ in range(50)] == ["can't connect: refused"] * 50
    assert database.reads == 1
    database.error = None
    clock.now += FRESH_SECONDS
    assert reader.get().status is STATUS


def test_those_who_ask_during_a_reading_share_it() -> None:
    database = Database(open_at_once=False)
    reader = StatusCache(database.read, Clock(), wait_seconds=PATIENCE_SECONDS)
    threads, got = in_threads(MAX_WAITING, reader)
    assert database.asked.acquire(timeout=PATIENCE_SECONDS)
    database.answer.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert [reading.status for reading in got] == [STATUS] * MAX_WAITING
    assert database.reads == 1


def test_hanging_database_holds_few_threads_and_those_not_for_long() -> None:
    database = Database(open_at_once=False)
    reader = StatusCache(database.read, Clock(), wait_seconds=0.2)
    threads, got = in_threads(20, reader)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert {reading.error for reading in got} == {"the database has not answered within 0.2 s; try again"}
    assert len(got) == 20
    assert database.reads == 1
    database.answer.set()


def test_no_place_to_wait_gives_the_last_reading_unless_it_is_old() -> None:
    database, clock = Database(), Clock()
    reader = StatusCache(database.read, clock, wait_seconds=PATIENCE_SECONDS)
    first = reader.get()
    database.answer.clear()
    clock.now += FRESH_SECONDS
    waiting, _ = in_threads(MAX_WAITING, reader)
    for _ in range(2):  # the first reading's, and the one under way
        assert database.asked.acquire(timeout=PATIENCE_SECONDS)
    while reader._waiting < MAX_WAITING:
        threading.Event().wait(0.005)
    assert reader.get() is first
    clock.now += STALE_SECONDS
    assert reader.get().status is None
    database.answer.set()
    for thread in waiting:
        thread.join(PATIENCE_SECONDS)


def test_secrets_are_removed_from_what_the_database_says() -> None:
    database = Database()
    database.runs = [{"error": "bad hunter2 here", "outcome": "failed"}, {"error": None, "outcome": "completed"}]
    reader = StatusCache(database.read, Clock(), redact=lambda text: text.replace("hunter2", "***"))
    assert [run["error"] for run in reader.get().runs] == ["bad *** here", None]
    database.error = DatabaseUnreachableError("password hunter2 refused")
    other = StatusCache(database.read, Clock(), redact=lambda text: text.replace("hunter2", "***"))
    assert other.get().error == "password *** refused"


def test_mistake_of_ours_is_logged_once_and_the_next_reading_begins() -> None:
    database, clock = Database(), Clock()
    database.error = ValueError("a mistake")
    reader = StatusCache(database.read, clock)
    with capture_logs() as logged:
        for _ in range(3):
            reader.get()
            clock.now += FRESH_SECONDS
    assert [line["log_level"] for line in logged] == ["error", "debug", "debug"]
    assert database.reads == 3


def test_proof_is_asked_for_without_waiting_and_never_again_once_given() -> None:
    database, clock = Database(open_at_once=False), Clock()
    reader = StatusCache(database.read, clock)
    assert reader.why_unproven() == "it is being tried"
    database.answer.set()
    reader.get()
    assert reader.why_unproven() is None
    clock.now += 10 * FRESH_SECONDS
    database.error = DatabaseUnreachableError("away")
    assert reader.get().status is None
    assert reader.why_unproven() is None
    assert database.reads == 2


@pytest.mark.parametrize("tries", [1, 5])
def test_missing_proof_is_asked_for_once_an_interval(tries: int) -> None:
    database, clock = Database(), Clock()
    database.error = DatabaseUnreachableError("refused")
    reader = StatusCache(database.read, clock)
    for number in range(tries):
        reader.get()
        assert [reader.why_unproven() for _ in range(20)] == ["refused"] * 20
        assert database.reads == number + 1
        clock.now += FRESH_SECONDS
