"""The database is read at most once at a time and once per interval, and no request waits long."""

import threading

import pytest
from structlog.testing import capture_logs

from controller.errors import DatabaseUnreachableError
from controller.web.status_cache import FRESH_SECONDS, MAX_WAITING, STALE_SECONDS, Snapshot, StatusCache
from tests.support.waiting import eventually

FACTS = "facts"
PATIENCE_SECONDS = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Database:
    """Answers once `answer` is set, and counts its calls."""

    def __init__(self, *, open_at_once: bool = True) -> None:
        self.asked = threading.Semaphore(0)
        self.answer = threading.Event()
        self.reads = 0
        self.error: Exception | None = None
        if open_at_once:
            self.answer.set()

    def read(self) -> str:
        self.reads += 1
        self.asked.release()
        assert self.answer.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error
        return FACTS


def in_threads(count: int, cache: StatusCache[str]) -> tuple[list[threading.Thread], list[Snapshot[str]]]:
    got: list[Snapshot[str]] = []
    threads = [threading.Thread(target=lambda: got.append(cache.get())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, got


def test_nothing_is_read_until_a_client_asks() -> None:
    database = Database()
    StatusCache(database.read, Clock())
    assert database.reads == 0


def test_many_requests_within_the_interval_cost_one_read() -> None:
    database, clock = Database(), Clock()
    cache = StatusCache(database.read, clock)
    for _ in range(100):
        assert cache.get().facts is FACTS
    assert database.reads == 1
    clock.now += FRESH_SECONDS
    cache.get()
    assert database.reads == 2


def test_failed_read_is_kept_as_long_as_a_successful_one() -> None:
    database, clock = Database(), Clock()
    database.error = DatabaseUnreachableError("can't connect:\n refused")
    cache = StatusCache(database.read, clock)
    assert [cache.get().error for _ in range(50)] == ["can't connect: refused"] * 50
    assert database.reads == 1
    database.error = None
    clock.now += FRESH_SECONDS
    assert cache.get().facts is FACTS


def test_requests_during_a_read_share_it() -> None:
    database = Database(open_at_once=False)
    cache = StatusCache(database.read, Clock(), wait_seconds=PATIENCE_SECONDS)
    threads, got = in_threads(MAX_WAITING, cache)
    assert database.asked.acquire(timeout=PATIENCE_SECONDS)
    database.answer.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert [snapshot.facts for snapshot in got] == [FACTS] * MAX_WAITING
    assert database.reads == 1


def test_hanging_database_occupies_few_threads_for_a_short_time() -> None:
    database = Database(open_at_once=False)
    cache = StatusCache(database.read, Clock(), wait_seconds=0.2)
    threads, got = in_threads(20, cache)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert {snapshot.error for snapshot in got} == {"the database has not answered within 0.2 s; try again"}
    assert len(got) == 20
    assert database.reads == 1
    database.answer.set()


def test_request_that_cannot_wait_gets_the_last_snapshot_unless_it_is_old() -> None:
    database, clock = Database(), Clock()
    cache = StatusCache(database.read, clock, wait_seconds=PATIENCE_SECONDS)
    first = cache.get()
    database.answer.clear()
    clock.now += FRESH_SECONDS
    waiting, _ = in_threads(MAX_WAITING, cache)
    for _ in range(2):  # of the first read, and of the one in progress
        assert database.asked.acquire(timeout=PATIENCE_SECONDS)
    eventually(lambda: cache._waiting == MAX_WAITING, "the other requests wait for the read", PATIENCE_SECONDS)
    assert cache.get() is first
    clock.now += STALE_SECONDS
    assert cache.get().facts is None
    database.answer.set()
    for thread in waiting:
        thread.join(PATIENCE_SECONDS)


def test_secrets_are_removed_from_errors() -> None:
    database = Database()
    database.error = DatabaseUnreachableError("password hunter2 refused")
    cache = StatusCache(database.read, Clock(), redact=lambda text: text.replace("hunter2", "***"))
    assert cache.get().error == "password *** refused"


def test_failed_read_keeps_the_last_known_facts_and_their_age() -> None:
    database, clock = Database(), Clock()
    cache = StatusCache(database.read, clock)
    assert (cache.get().last_known, cache.get().age_seconds) == (FACTS, 0)
    database.error = DatabaseUnreachableError("away")
    clock.now += 60
    snapshot = cache.get()
    assert (snapshot.facts, snapshot.error) == (None, "away")
    assert (snapshot.last_known, snapshot.age_seconds) == (FACTS, 60)


def test_defect_is_logged_once_and_the_next_read_starts() -> None:
    database, clock = Database(), Clock()
    database.error = ValueError("a mistake")
    cache = StatusCache(database.read, clock)
    with capture_logs() as logged:
        for _ in range(3):
            cache.get()
            clock.now += FRESH_SECONDS
    assert [line["log_level"] for line in logged] == ["error", "debug", "debug"]
    assert database.reads == 3


def test_first_success_is_remembered_without_reading_again() -> None:
    database, clock = Database(open_at_once=False), Clock()
    cache = StatusCache(database.read, clock)
    assert cache.why_never_read() == "the first attempt is in progress"
    database.answer.set()
    cache.get()
    assert cache.why_never_read() is None
    clock.now += 10 * FRESH_SECONDS
    database.error = DatabaseUnreachableError("away")
    assert cache.get().facts is None
    assert cache.why_never_read() is None
    assert database.reads == 2


@pytest.mark.parametrize("tries", [1, 5])
def test_read_that_never_succeeded_is_tried_once_per_interval(tries: int) -> None:
    database, clock = Database(), Clock()
    database.error = DatabaseUnreachableError("refused")
    cache = StatusCache(database.read, clock)
    for number in range(tries):
        cache.get()
        assert [cache.why_never_read() for _ in range(20)] == ["refused"] * 20
        assert database.reads == number + 1
        clock.now += FRESH_SECONDS
