"""The `.env` file, and the names of variables in it and in the environment."""

import os
import re
import stat
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

#: Kubernetes sets these for a Service that is named `billing`.
_OF_A_SERVICE: Final = re.compile(r"_SERVICE_(HOST|PORT\w*)$|_PORT(_\d+_(TCP|UDP|SCTP)\w*)?$")
#: A name that is at least this similar to one of ours counts as a misspelling of it.
_SIMILAR: Final = 0.9


def read(file: Path | None) -> dict[str, str]:
    """Returns the variables of the file, in capital letters; none if there is no file. `${...}` is literal text.

    Raises:
        UnicodeDecodeError: the file is not UTF-8 text.
    """
    if file is None or not file.is_file():
        return {}
    return {name.upper(): value for name, value in dotenv_values(file, interpolate=False).items() if value}


def exposed(file: Path) -> str | None:
    """Returns a warning if users other than its owner can read the file."""
    if os.name == "nt" or not file.is_file():
        return None
    if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return f"{file} holds a password and other users can read it: chmod 600 {file}"
    return None


def misspelled(names: Collection[str], known: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Yields each name that looks like a setting but isn't one, with the setting that it resembles."""
    for name in sorted({name.upper() for name in names} - set(known)):
        similar = get_close_matches(name, known, n=1, cutoff=_SIMILAR)
        if similar or (name.startswith("BILLING_") and not _OF_A_SERVICE.search(name)):
            yield name, next(iter(similar), None)
