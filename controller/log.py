"""Logs: one event per line, as JSON for machines or in colour for people.

An event is named `noun.verb_past` and carries key-values. `term`, `cycle` and `instance` are the keys to search for.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from controller.terminal import printable

#: Keys that may hold text from other sources, which can contain a secret. All other keys hold our own text and numbers.
FOREIGN_TEXT = {"error", "exception", "reason"}
#: The first keys of a JSON line, in this order.
FIRST: Final = ("time", "level", "event")
#: The last keys of a console line.
LAST: Final = ("part", "instance")
#: SGR parameters: red, yellow, green, blue.
LEVEL_STYLES: Final = {"error": "31", "warning": "33", "info": "32", "debug": "34"}
#: Text that a console line shows without quotation marks.
_BARE: Final = re.compile(r'[^\s"=]+')

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
    *,
    colours: bool = True,
) -> None:
    """Configures structlog for the process.

    Args:
        level: error, warn, info or debug.
        style: json or console; None takes console if the stream is a terminal, else json.
        instance: the id of this process, added to every line.
        read_secrets: returns the texts to replace with ***. Called again for each line with text from other sources,
            because a password file may have changed.
        stream: where the lines go.
        colours: False if NO_COLOR is set. Only a terminal gets colours.
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
    render: list[Processor] = (
        [
            structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S.%f UTC", key="time"),
            _Console(colours and stream.isatty()),
        ]
        if console
        else [
            structlog.processors.TimeStamper("iso", key="time"),
            _in_order,
            structlog.processors.JSONRenderer(default=str),
        ]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            add_instance,
            structlog.processors.format_exc_info,
            redact,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_arguments: _Line(stream),
        cache_logger_on_first_use=False,
    )


def redacted(text: str) -> str:
    """Masks every configured secret in a text from another source."""
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
    """Writes lines. If the reader of the log has gone away, billing and drains continue without a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        """Writes a line with a single call, so that the lines of two threads don't mix."""
        with suppress(OSError, ValueError):
            self._stream.write(message + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = error = critical = exception = msg


class _Console:
    """Renders a line for people. Text with blanks is quoted and other values are JSON; nothing is a Python repr."""

    def __init__(self, colours: bool) -> None:  # noqa: FBT001 - the only argument
        self._colours = colours

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> str:  # noqa: ANN401
        time, level, name = (printable(event.pop(key)) for key in FIRST)
        exception = event.pop("exception", None)
        own = [key for key in event if key not in LAST]
        line = " ".join(
            [
                self._styled("2", time),
                self._styled(LEVEL_STYLES.get(level, ""), f"{level:<7}"),
                self._styled("1", f"{name:<24}"),
                *(f"{self._styled('36', key)}={_shown(event[key])}" for key in (*own, *LAST) if key in event),
            ]
        )
        return "\n".join([line, *(printable(each) for each in str(exception or "").splitlines())])

    def _styled(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._colours else text


def _shown(value: object) -> str:
    if value is not None and not isinstance(value, bool | int | float | dict | list | tuple):
        value = str(value)
        if _BARE.fullmatch(value):
            return printable(value)
    return printable(json.dumps(value, default=str, ensure_ascii=False))


def _in_order(_logger: Any, _method: str, event: EventDict) -> EventDict:  # noqa: ANN401
    return {key: event.pop(key) for key in FIRST} | dict(event)


def _without(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # a secret may contain another
        text = text.replace(secret, "***")
    return text
