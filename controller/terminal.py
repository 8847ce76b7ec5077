"""Writes to standard output and standard error in any encoding, even if they are a pipe, a full disk or closed.

Data from the database may contain any character. It reaches a terminal neither as markup nor as a control sequence.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

from controller.errors import BillingError

#: Fewest columns to assume. A terminal may claim to be narrower than a person can read.
NARROWEST: Final = 40


class OutputError(BillingError):
    """A result can't be written. Exit status 1."""


def prepare() -> None:
    """Makes both streams usable. Call it before opening any file, which could get a closed stream's descriptor."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        else:
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Replaces control characters, and characters that change the direction of writing, with their escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def width(stream: TextIO) -> int | None:
    """Returns the columns of a terminal; None if the stream is not a terminal, so no width applies."""
    return max(shutil.get_terminal_size().columns, NARROWEST) if stream.isatty() else None


def write(text: str) -> None:
    """Writes text and a line break to standard output. It isn't an error if the reader has closed its pipe.

    Raises:
        OutputError: the stream is closed or full.
    """
    if sys.__stdout__ is None:
        raise OutputError("can't write to standard output: it is closed")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # buffered text must not fail again when the process exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"can't write to standard output: {error.strerror}") from None


def note(text: str) -> None:
    """Writes a line to standard error. A failure is ignored, because there is nowhere left to report it."""
    with suppress(OSError, ValueError):
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()
