"""Logs: one event per line, as JSON for machines or in colour for people.

An event is named `noun.verb_past` and carries key-values. `term`, `cycle` and `instance` are the keys to search for.
"""

import logging
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from controller.terminal import printable

#: Keys that may hold text from elsewhere, which can contain a secret. All other keys hold our own words and numbers.
FOREIGN_TEXT = {"error", "exception", "reason"}

#: Every secret that this process has read, including rotated ones.
_known: set[str] = set()

LEVELS = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


def configure(
    level: str,
    style: Literal["json", "console"] | None,
    instance: str,
    read_secrets: Callable[[], Collection[str]],
    stream: TextIO = sys.stdout,
) -> None:
    """Configures structlog for the process.

    Args:
        level: error, warn, info or debug.
        style: json or console; None takes console if the stream is a terminal, else json.
        instance: the id of this process, added to every line.
        read_secrets: returns the texts to replace with ***. Called again for each line with text from elsewhere,
            because a password file may have changed.
        stream: where the lines go.
    """
    known = _known
    known.update(read_secrets())
    # psycopg also logs the errors that it raises, over several lines. Without a handler, Python would print them.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())

    def add_instance(_logger: Any, _method: str, event: EventDict) -> EventDict:  # noqa: ANN401
        event["instance"] = instance
        return event

    def redact(_logger: Any, _method: str, event: EventDict) -> EventDict:  # noqa: ANN401
        carriers = FOREIGN_TEXT & event.keys()
        if carriers:
            known.update(read_secrets())
        for key in carriers:
            event[key] = _without(str(event[key]), known)
        return event

    console = style == "console" or (style is None and stream.isatty())

    def escape(_logger: Any, _method: str, event: EventDict) -> EventDict:  # noqa: ANN401
        for key, value in event.items():
            if isinstance(value, str):  # others are printed by repr(), which escapes
                event[key] = "\n".join(map(printable, value.split("\n"))) if key == "exception" else printable(value)
        return event

    render: list[Processor] = (
        [
            escape,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback),
        ]
        if console
        else [structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            add_instance,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False)
            if console
            else structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            redact,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_arguments: _Line(stream),
        cache_logger_on_first_use=False,
    )


def redacted(text: str) -> str:
    """Masks every secret that was configured, in text from outside."""
    return _without(text, _known)


class WarnOnce:
    """Logs a failure that repeats: once as a warning, then at debug level until the operation has worked again.

    Not synchronized. A race between two threads costs one more warning.
    """

    def __init__(
        self,
        logger: Any,  # noqa: ANN401 - structlog's loggers have no common type
        event: str,
        level: Literal["warning", "error"] = "warning",
    ) -> None:
        self._logger = logger
        self._event = event
        self._level = level
        self._reported: set[tuple[str, ...]] = set()

    def failed(self, *kind: str, **values: object) -> None:
        """Reports a failure with the event's key-values. Kinds are reported separately."""
        level = "debug" if kind in self._reported else self._level
        self._reported.add(kind)
        getattr(self._logger, level)(self._event, **values)

    def worked(self, *kind: str) -> None:
        """Forgets the failures whose kind begins with `kind`; all of them by default."""
        self._reported = {reported for reported in self._reported if reported[: len(kind)] != kind}


class _Line:
    """Writes lines. If their reader has gone away, billing and drains continue without a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        """Writes a line with a single call, so that the lines of two threads don't mix."""
        with suppress(OSError, ValueError):
            self._stream.write(message + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = error = critical = exception = msg


def _without(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # a secret may contain another
        text = text.replace(secret, "***")
    return text
