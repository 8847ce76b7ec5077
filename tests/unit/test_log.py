"""A log line is JSON for machines or one line for people, and never contains a password."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from controller import log

PASSWORD = "s3cr%t p@ss/w?rd"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restores structlog's configuration, which belongs to the whole process."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def lines(
    tell: Callable[[Any], object],
    *,
    level: str = "debug",
    style: Literal["json", "console"] | None = "json",
    secrets: Callable[[], list[str]] = lambda: [PASSWORD],
) -> list[str]:
    """The lines written while `tell` logs."""
    stream = io.StringIO()
    log.configure(level, style, "host-1", secrets, stream)
    tell(structlog.get_logger(part="test"))
    return stream.getvalue().splitlines()


def test_json_line_has_time_level_event_instance_and_values() -> None:
    (line,) = lines(lambda logger: logger.info("cycle.completed", term=3, amount="1.50"))
    fields = json.loads(line)
    assert datetime.fromisoformat(fields.pop("time")).utcoffset() is not None
    assert fields == {
        "event": "cycle.completed", "level": "info", "instance": "host-1", "part": "test", "term": 3, "amount": "1.50",
    }  # fmt: skip


def test_json_line_begins_with_time_level_and_event() -> None:
    (line,) = lines(lambda logger: logger.info("x.done", term=3, exc_info=raised("x")))
    assert list(json.loads(line))[:3] == ["time", "level", "event"]


def test_console_line_has_the_date_utc_and_values_that_are_no_python_reprs() -> None:
    def tell(logger: Any) -> None:  # noqa: ANN401 - structlog's
        values = {"word": "debts", "text": 'no "price"', "none": None, "yes": True, "amount": Decimal("1.50")}
        logger.info("x.done", **values, reasons={"locked": 2}, terms=(1, 2), empty="")

    (line,) = lines(tell, style="console")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} UTC info +x\.done +word=debts ", line)
    assert line.endswith(
        r'text="no \"price\"" none=null yes=true amount=1.50 reasons={"locked": 2} terms=[1, 2] empty=""'
        " part=test instance=host-1"
    )


def test_no_color_disables_colours_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(*, colours: bool) -> str:
        stream = Terminal()
        log.configure("info", None, "host-1", list, stream, colours=colours)
        structlog.get_logger(part="test").warning("x.failed", error="no")
        return stream.getvalue()

    assert "\x1b[33m" in shown(colours=True)
    assert "\x1b" not in shown(colours=False)


def test_time_is_utc_to_the_microsecond() -> None:
    (line,) = lines(lambda logger: logger.info("x.done"))
    text = json.loads(line)["time"]
    assert text.endswith("Z")
    assert len(text) == len("2026-11-22T21:43:23.210267Z")


@pytest.mark.parametrize(("level", "told"), [("error", 1), ("warn", 2), ("info", 3), ("debug", 4)])
def test_level_filters_lower_levels(level: str, told: int) -> None:
    def tell(logger: Any) -> None:  # noqa: ANN401 - structlog's
        for each in (logger.error, logger.warning, logger.info, logger.debug):
            each("x.done")

    assert len(lines(tell, level=level)) == told


def test_text_with_line_breaks_stays_one_json_line() -> None:
    assert len(lines(lambda logger: logger.error("x.failed", error="one\ntwo\r\nthree"))) == 1


def test_log_is_json_without_a_terminal() -> None:
    (line,) = lines(lambda logger: logger.info("x.done"), style=None)
    assert json.loads(line)["event"] == "x.done"


def test_console_line_has_no_colours_in_a_file() -> None:
    (line,) = lines(lambda logger: logger.info("x.done", term=3), style="console")
    assert "x.done" in line
    assert "term=3" in line
    assert "\x1b" not in line


def raised(text: str) -> Exception:
    """An exception with a traceback."""
    try:
        int(text)
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize(
    "tell",
    [
        lambda logger: logger.error("x.failed", error=f"password {PASSWORD} refused"),
        lambda logger: logger.error("x.failed", error=ValueError(PASSWORD)),
        lambda logger: logger.error("x.failed", exc_info=raised(PASSWORD)),
        lambda logger: logger.warning("x.failed", reason=PASSWORD),
        lambda logger: logger.debug("x.failed", error=[PASSWORD]),
    ],
    ids=["text", "exception", "traceback", "reason", "list"],
)
def test_password_in_text_from_elsewhere_is_replaced(
    tell: Callable[[Any], object], style: Literal["json", "console"]
) -> None:
    written = "\n".join(lines(tell, style=style))
    assert PASSWORD not in written
    assert "***" in written


def test_password_that_changed_since_is_hidden_too() -> None:
    now = ["first-secret"]

    def tell(logger: Any) -> None:  # noqa: ANN401 - structlog's
        logger.error("x.failed", error="first-secret")
        now[0] = "second-secret"
        logger.error("x.failed", error="first-secret and second-secret")

    assert [json.loads(line)["error"] for line in lines(tell, secrets=lambda: list(now))] == ["***", "*** and ***"]


def test_password_that_contains_another_is_hidden_whole() -> None:
    (line,) = lines(
        lambda logger: logger.error("x.failed", error="hunter2-extended"),
        secrets=lambda: ["hunter2", "hunter2-extended"],
    )
    assert json.loads(line)["error"] == "***"


@given(st.text(st.characters(codec="utf-8"), min_size=4, max_size=30), st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_password_is_hidden_wherever_it_stands(password: str, before: str, after: str) -> None:
    (line,) = lines(
        lambda logger: logger.error("x.failed", error=before + password + after), secrets=lambda: [password]
    )
    shown = json.loads(line)["error"]
    assert password not in shown or password in "***"


def test_messages_of_psycopg_are_not_printed() -> None:
    told = (
        "import logging; from controller import log; log.configure('info', 'json', 'i', list);"
        " logging.getLogger('psycopg').warning('error ignored in rollback: server closed the connection')"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, check=True, timeout=30)
    assert (done.stdout, done.stderr) == (b"", b"")


def reported(report: Callable[[log.WarnOnce], object], level: Literal["warning", "error"] = "warning") -> list[str]:
    """The levels of what a reporter logs."""
    with capture_logs() as logs:
        report(log.WarnOnce(structlog.get_logger(), "thing.failed", level))
    assert {line["event"] for line in logs} <= {"thing.failed"}
    return [line["log_level"] for line in logs]


def test_failure_is_a_warning_once_until_it_works_again() -> None:
    def report(failures: log.WarnOnce) -> None:
        failures.failed(error="x")
        failures.failed(error="x")
        failures.worked()
        failures.failed(error="x")

    assert reported(report) == ["warning", "debug", "warning"]
    assert reported(report, "error") == ["error", "debug", "error"]


def test_kinds_of_failures_are_reported_and_forgotten_separately() -> None:
    def report(failures: log.WarnOnce) -> None:
        failures.failed("pods", "forbidden")
        failures.failed("pods", "missing")
        failures.failed("events", "forbidden")
        failures.worked("pods")
        failures.failed("pods", "forbidden")
        failures.failed("pods", "missing")
        failures.failed("events", "forbidden")

    assert reported(report) == ["warning", "warning", "warning", "warning", "warning", "debug"]
