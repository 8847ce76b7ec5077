"""No service dies unnoticed, and every wait for one is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from controller.lifecycle.services import Service, Services


def loop(name: str, run: Callable[[], None] | None = None) -> tuple[Service, threading.Event]:
    """A service that runs until it is stopped."""
    stopping = threading.Event()
    return Service(name, run or partial(wait, stopping), stopping.set), stopping


def wait(event: threading.Event) -> None:
    event.wait(10)


def services(*made: Service, crashes: list[tuple[str, BaseException]] | None = None) -> Services:
    kept = crashes if crashes is not None else []
    running = Services(lambda name, error: kept.append((name, error)))
    for service in made:
        running.add(service)
    return running


def test_each_service_runs_on_a_thread_of_its_name() -> None:
    names: list[str] = []
    done = threading.Barrier(3)

    def run() -> None:
        names.append(threading.current_thread().name)
        done.wait(10)

    services(loop("one", run)[0], loop("two", run)[0]).start()
    done.wait(10)
    assert sorted(names) == ["one", "two"]


def test_stop_waits_until_the_service_has_ended() -> None:
    one, stopping = loop("one")
    running = services(one)
    running.start()
    assert running.stop("one", 10)
    assert stopping.is_set()
    assert running.stop("one", 0), "a second time is harmless"


def test_stop_gives_up_on_a_stuck_service_in_time() -> None:
    free = threading.Event()
    stuck, _ = loop("stuck", partial(wait, free))
    running = services(stuck)
    running.start()
    assert not running.stop("stuck", 0.01)
    free.set()
    assert running.stop("stuck", 10)


def test_join_waits_without_stopping_the_service() -> None:
    one, stopping = loop("one")
    running = services(one)
    running.start()
    assert not running.join("one", 0.01)
    assert not stopping.is_set()
    stopping.set()
    assert running.join("one", 10)


def test_service_that_was_never_started_counts_as_ended() -> None:
    one, _ = loop("one")
    assert services(one).stop("one", 10)


def test_only_a_service_that_was_started_can_have_ended() -> None:
    one, _ = loop("one")
    made = services(one)
    assert not made.ended
    made.start()
    assert not made.ended
    made.stop("one", 10)
    assert list(made.ended) == ["one"]


def test_crash_is_reported_once_and_the_other_services_keep_running() -> None:
    crashes: list[tuple[str, BaseException]] = []
    error = ZeroDivisionError("by hand")

    def crash() -> None:
        raise error

    other, stopping = loop("other")
    running = services(loop("broken", crash)[0], other, crashes=crashes)
    running.start()
    assert running.stop("broken", 10)
    assert crashes == [("broken", error)]
    assert not stopping.is_set()
    assert running.stop("other", 10)


def test_exit_from_a_thread_is_reported_as_a_crash() -> None:
    crashes: list[tuple[str, BaseException]] = []

    def leave() -> None:
        raise SystemExit(3)

    running = services(loop("leaving", leave)[0], crashes=crashes)
    running.start()
    running.stop("leaving", 10)
    assert [name for name, _ in crashes] == ["leaving"]
