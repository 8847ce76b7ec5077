"""Logs: one event a line on standard output, JSON for machines, colours for people.

An event is called `noun.verb_past` and carries key-values; `term`, `cycle` and `instance` are what to search for.
"""

import logging
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

#: The keys under which text from elsewhere is logged; all others hold our own words and numbers.
FOREIGN_TEXT = {"error", "exception", "reason"}

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
    """Sets structlog up for the process.

    Args:
        level: error, warn, info or debug.
        style: None: for people on a terminal, else JSON.
        instance: `hostname-pid`, part of every line.
        read_secrets: what is replaced by *** wherever it should turn up; asked again when a line holds an error.
        stream: where to.
    """
    known = set(read_secrets())
    # It tells of errors that it raises as well, over several lines, and without a handler Python would print them.
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
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)]
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


class _Line:
    """Writes lines. A reader that has gone away must not stop what the lines tell of: billing, or a drain."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        """One line, in one write, so that lines of two threads do not mix."""
        with suppress(OSError, ValueError):
            self._stream.write(message + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = error = critical = exception = msg


def _without(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, "***")
    return text
